"""The form of a replay: the payload as JSON with its secrets hidden, the priority, and the reason."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from django import forms

from dlq.models import DeadLetter
from jobs import replays, shown
from jobs.errors import JobsError, PayloadError
from jobs.masking import unmask
from jobs.payload import Payload, decode
from jobs.states import Priority


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a difference: ``kind`` is "same", "gone" or "new"."""

    kind: str
    text: str

    @property
    def sign(self) -> str:
        """What stands in the margin."""
        return {"gone": "-", "new": "+"}.get(self.kind, " ")


class ReplayForm(forms.Form):
    """What to send again, and why."""

    payload = forms.CharField(
        label="Payload",
        strip=False,
        widget=forms.Textarea(attrs={"rows": 14, "spellcheck": "false", "class": "jobs-code-input"}),
    )
    priority = forms.TypedChoiceField(
        label="Priority", required=False, coerce=lambda value: Priority(int(value)), empty_value=None
    )
    why = forms.CharField(
        label="Reason", required=False, max_length=1000, widget=forms.TextInput(attrs={"class": "vTextField"})
    )

    def __init__(self, letter: DeadLetter, posted: Any = None, *, editable: bool) -> None:
        super().__init__(posted, initial={"payload": self.hidden(letter.task, letter.payload)})
        self.letter, self.editable = letter, editable
        self.edited: Payload | None = None
        self.fields["payload"].disabled = not editable
        began = Priority(replays.first_priority(letter.job)).name.lower()
        self.fields["priority"].choices = [  # type: ignore[attr-defined]
            ("", f"as the job began: {began}"), *((p.value, p.name.lower()) for p in Priority),
        ]  # fmt: skip

    @staticmethod
    def hidden(task: str, text: str) -> str:
        """A payload's text as it may be shown, whole: an edit must not cut it."""
        return json.dumps(shown.masked_payload(text, shown.parameters(task)), indent=2, ensure_ascii=False)

    def clean_payload(self) -> str:
        """The text, once it is known to be a payload; ``edited`` is set when it differs from the letter's."""
        text: str = self.cleaned_data["payload"]
        original = shown.loaded(self.letter.payload)
        try:
            restored = unmask(_parsed(text), original)
            content = decode(json.dumps(restored))
        except PayloadError as error:
            raise forms.ValidationError(str(error)) from None
        self.edited = content if self.editable and restored != original else None
        if self.edited is not None:
            self._check(self.edited)
        return text

    def _check(self, content: Payload) -> None:
        """Refuse a payload that does not fit the task, before it is reviewed."""
        try:
            replays.check(self.letter.job, content)
        except JobsError as error:
            raise forms.ValidationError(str(error)) from None

    @property
    def reason(self) -> str:
        """Why, as given."""
        return str(self.cleaned_data.get("why", "")).strip()

    @property
    def priority_given(self) -> Priority | None:
        """At which priority, where it is not that with which the job began."""
        given: Priority | None = self.cleaned_data.get("priority")
        return given

    @property
    def priority_name(self) -> str:
        """The same as a word."""
        given = self.priority_given
        return str(dict(self.fields["priority"].choices)[""]) if given is None else given.name.lower()  # type: ignore[attr-defined]

    @property
    def changes(self) -> list[Line]:
        """How the text differs from the letter's payload; empty when it does not."""
        before = self.hidden(self.letter.task, self.letter.payload)
        return list(_lines(before, json.dumps(_parsed(self.cleaned_data["payload"]), indent=2, ensure_ascii=False)))

    @classmethod
    def difference(cls, task: str, before: str, after: str) -> list[Line]:
        """How two stored payloads differ, secrets hidden."""
        return list(_lines(cls.hidden(task, before), cls.hidden(task, after)))


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise PayloadError(f"This is not JSON: {error}.") from None


def _lines(before: str, after: str) -> Iterator[Line]:
    if before == after:
        return
    kinds = {"- ": "gone", "+ ": "new", "  ": "same"}
    for line in difflib.ndiff(before.splitlines(), after.splitlines()):
        if line[:2] in kinds:
            yield Line(kinds[line[:2]], line[2:])
