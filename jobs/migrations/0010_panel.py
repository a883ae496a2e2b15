from django.db import migrations


class Migration(migrations.Migration):
    dependencies = [
        ("jobs", "0009_breakers"),
    ]

    operations = [
        migrations.AlterModelOptions(
            name="allotment",
            options={
                "default_permissions": ("view",),
                "permissions": [("set_limit", "Can set and withdraw limits, and weights of tenants")],
                "verbose_name": "limit or weight",
                "verbose_name_plural": "limits and weights",
            },
        ),
        migrations.AlterModelOptions(
            name="share",
            options={"default_permissions": (), "verbose_name": "waiting line"},
        ),
    ]
