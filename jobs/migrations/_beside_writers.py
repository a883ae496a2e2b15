"""Indexes made and dropped beside those who write: on PostgreSQL a table with a long history is never locked for it.

Each can be run again after it was broken off: what is left of the first time is dropped.
"""

from __future__ import annotations

from typing import Any

from django.db import migrations, models, transaction


class BesideWriters:
    """An operation on one index that PostgreSQL runs CONCURRENTLY, which no transaction may surround."""

    atomic = False

    @staticmethod
    def concurrent(schema_editor: Any) -> bool:
        """Whether the database can make an index while others write."""
        return bool(schema_editor.connection.vendor == "postgresql")

    @staticmethod
    def make(schema_editor: Any, statement: Any, name: str) -> None:
        """Run a CREATE INDEX so that nobody waits for it."""
        BesideWriters.drop(schema_editor, name)
        how = " INDEX CONCURRENTLY " if BesideWriters.concurrent(schema_editor) else " INDEX "
        schema_editor.execute(str(statement).replace(" INDEX ", how, 1), params=None)

    @staticmethod
    def drop(schema_editor: Any, name: str) -> None:
        """Drop an index, if it is there."""
        how = "CONCURRENTLY IF EXISTS" if BesideWriters.concurrent(schema_editor) else "IF EXISTS"
        schema_editor.execute(f"DROP INDEX {how} {schema_editor.quote_name(name)}", params=None)


class AddIndex(BesideWriters, migrations.AddIndex):
    """Make an index."""

    def database_forwards(self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any) -> None:
        model = to_state.apps.get_model(app_label, self.model_name)
        if self.allow_migrate_model(schema_editor.connection.alias, model):
            self.make(schema_editor, self.index.create_sql(model, schema_editor), self.index.name)

    def database_backwards(self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any) -> None:
        model = from_state.apps.get_model(app_label, self.model_name)
        if self.allow_migrate_model(schema_editor.connection.alias, model):
            self.drop(schema_editor, self.index.name)


class RemoveIndex(BesideWriters, migrations.RemoveIndex):
    """Drop an index."""

    def database_forwards(self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any) -> None:
        model = from_state.apps.get_model(app_label, self.model_name)
        if self.allow_migrate_model(schema_editor.connection.alias, model):
            self.drop(schema_editor, self.name)

    def database_backwards(self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any) -> None:
        model = to_state.apps.get_model(app_label, self.model_name)
        if self.allow_migrate_model(schema_editor.connection.alias, model):
            index = next(i for i in model._meta.indexes if i.name == self.name)
            self.make(schema_editor, index.create_sql(model, schema_editor), index.name)


class ReplaceUnique(BesideWriters, migrations.operations.base.Operation):
    """Put one unique index in the place of another of the same name; at no moment is there none."""

    reversible = True
    elidable = False

    def __init__(self, model_name: str, old: models.UniqueConstraint, new: models.UniqueConstraint) -> None:
        self.model_name, self.old, self.new = model_name, old, new

    def deconstruct(self) -> tuple[str, list[Any], dict[str, Any]]:
        return type(self).__name__, [self.model_name, self.old, self.new], {}

    def state_forwards(self, app_label: str, state: Any) -> None:
        state.remove_constraint(app_label, self.model_name, self.old.name)
        state.add_constraint(app_label, self.model_name, self.new)

    def database_forwards(self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any) -> None:
        self._replace(app_label, schema_editor, to_state, self.old, self.new)

    def database_backwards(self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any) -> None:
        self._replace(app_label, schema_editor, to_state, self.new, self.old)

    def _replace(self, app_label: str, schema_editor: Any, state: Any, old: Any, new: Any) -> None:
        model, connection = state.apps.get_model(app_label, self.model_name), schema_editor.connection
        if not self.allow_migrate_model(connection.alias, model):
            return
        if not self.concurrent(schema_editor):
            with transaction.atomic(using=connection.alias):
                schema_editor.remove_constraint(model, old)
                schema_editor.add_constraint(model, new)
            return
        made, gone = f"{new.name}_new", f"{old.name}_old"
        quote = schema_editor.quote_name
        self.drop(schema_editor, gone)
        self.make(schema_editor, str(new.create_sql(model, schema_editor)).replace(quote(new.name), quote(made)), made)
        # A plain DROP INDEX would wait for all who read the table, and all who come later would wait for it.
        with transaction.atomic(using=connection.alias):
            schema_editor.execute(f"ALTER INDEX IF EXISTS {quote(old.name)} RENAME TO {quote(gone)}", params=None)
            schema_editor.execute(f"ALTER INDEX {quote(made)} RENAME TO {quote(new.name)}", params=None)
        self.drop(schema_editor, gone)

    def describe(self) -> str:
        return f"Replace {self.old.name} of {self.model_name}"


class Storage(migrations.operations.base.Operation):
    """How PostgreSQL stores a table; other databases have nothing to set."""

    reversible = True
    elidable = False

    def __init__(self, model_name: str, **settings: float) -> None:
        self.model_name, self.settings = model_name, settings

    def deconstruct(self) -> tuple[str, list[Any], dict[str, Any]]:
        return type(self).__name__, [self.model_name], dict(self.settings)

    def state_forwards(self, app_label: str, state: Any) -> None:
        """Nothing of the models changes."""

    def database_forwards(self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any) -> None:
        settings = ", ".join(f"{name} = {value}" for name, value in self.settings.items())
        self._alter(app_label, schema_editor, to_state, f"SET ({settings})")

    def database_backwards(self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any) -> None:
        self._alter(app_label, schema_editor, to_state, f"RESET ({', '.join(self.settings)})")

    def _alter(self, app_label: str, schema_editor: Any, state: Any, what: str) -> None:
        model: type[models.Model] = state.apps.get_model(app_label, self.model_name)
        connection = schema_editor.connection
        if connection.vendor == "postgresql" and self.allow_migrate_model(connection.alias, model):
            schema_editor.execute(f"ALTER TABLE {schema_editor.quote_name(model._meta.db_table)} {what}", params=None)

    def describe(self) -> str:
        return f"Set how {self.model_name} is stored"
