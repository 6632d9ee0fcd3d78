"""Credentials stay out of what people get to read: URIs, messages of clients that quote them, logs. Torch-free."""

from __future__ import annotations

import re
from urllib.parse import unquote

_USER = re.compile(
    r"""(://|%3A%2F%2F)                             # of a URI that is quoted as it is, or percent-encoded
    (?: [^\s/?\#"'<>]{0,1000}                      # user:password up to the last @ before the path
      | [^\s/?\#"'<>@:\[]{0,1000} :                # or up to any @, if what follows the colon is no port:
        (?! \d{1,5} (?: [/?\#\s"'<>,)\]}] | $ ) )   # a password with characters that should have been encoded
        \S{0,1000}
    ) (?:@|%40)""",
    re.VERBOSE | re.IGNORECASE,
)
_PARAMETER = re.compile(
    r"""([?&;\#]|%3F|%26) ([^\s=&;?"'<>]{1,100}?) (=|%3D) (?: (?!%26) [^\s&;"'<>] )*""", re.VERBOSE | re.IGNORECASE
)
_SETTING = re.compile(
    r"""( (?: passw(?:or)?d | pwd | token | secret | (?:access|account|api|private)[_-]?key ) [\w.-]{0,100}
    ["']? \s* [=:] \s* ) (?: "[^"\n]+ | '[^'\n]+ | [^\s"',;&]+ )""",
    re.VERBOSE | re.IGNORECASE,
)
_HEADER = re.compile(r"""(authorization["']?\s*[=:]\s*["']?)(?:[a-z]+\s+)?[^\s"',;]+""", re.IGNORECASE)
_TELLTALE = re.compile(r"pass|pwd|token|secret|credential|signature|auth|key|^sig$|^code$", re.IGNORECASE)
"""Parts of the names of query parameters that are nobody's business."""


def redact(uri: str) -> str:
    """Return a URI without user name, password and query, fit for logs.

    >>> redact("postgresql://me:secret@db.example/mlflow?sslmode=require")
    'postgresql://***@db.example/mlflow'
    """
    scheme, separator, rest = uri.partition("://")
    if not separator:  # no URI, but maybe one whose scheme was forgotten
        return re.sub(r"^[^/\s:]*:[^/\s]*@", "***@", uri)
    rest = re.sub(r"^[^/?#]*@", "***@", rest)  # unlike in a text, a blank does not end it
    return redact_text(f"{scheme}://{rest}").partition("?")[0]


def redact_text(text: str) -> str:
    """Return a text without the credentials in it: in URIs, query parameters, settings, ``Authorization`` headers.

    Query parameters that are known to be harmless by their name stay. What is no URI and has no telling name cannot
    be found out.

    >>> redact_text("cannot read http://me:secret@host/x?run=1&access_token=secret: refused")
    'cannot read http://***@host/x?run=1&access_token=***: refused'
    """
    text = _USER.sub(r"\1***@", text)
    text = _HEADER.sub(r"\1***", text)
    text = _SETTING.sub(r"\1***", text)
    return _PARAMETER.sub(_masked, text)


def _masked(parameter: re.Match[str]) -> str:
    separator, name, equals = parameter.groups()
    return f"{separator}{name}{equals}***" if _TELLTALE.search(unquote(unquote(name))) else parameter[0]
