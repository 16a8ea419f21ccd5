"""A model of any kind as one static definition and a flat list of named arrays.

The only room that asks what kind a model is. A kind is one file, a subclass of `Definition` that
says what it takes, how it comes apart and how it is called, and one entry of `KINDS`.
"""

from koopjax.forms._definition import Call, Constant, Definition, joined, named_leaves, spell
from koopjax.forms._inference import ModeError
from koopjax.forms._kinds import KINDS, Opened, define, form_of, opened

__all__ = [
    "KINDS",
    "Call",
    "Constant",
    "Definition",
    "ModeError",
    "Opened",
    "define",
    "form_of",
    "joined",
    "named_leaves",
    "opened",
    "spell",
]
