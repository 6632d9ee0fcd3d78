"""Removes credentials from texts that people read: URIs, error messages that quote them, logs. Torch-free."""

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
_NAME = r"""
    (?: passw(?:or)?d | passphrase | pwd | token(?!iz) | secret | jwt | sessionid
      | (?:access|account|api|auth|private|storage|encryption|signing|ssh)[_\ -]?key ) [\w.-]{0,100}"""
"""Names, or parts of names, of settings whose values are credentials."""
_VALUE = r"""(?: \\*" (?: \\. | [^"\\\n] )* \\*"?  |  \\*' (?: \\. | [^'\\\n] )* \\*'?  |  \( [^)\n]* \)?
    | [^\s"',;&]+ (?: [,;&"'] (?! [\w.-]+ \\*["']? \s* [=:] ) [^\s"',;&)\]}]+ )* )"""
"""Value of a setting: a quoted string (quotes may be escaped), a tuple, or text up to a blank or the next setting."""
_SETTING = re.compile(
    rf"""(
      (?: {_NAME} | (?-i: (?<=[a-z])(?:Pass|Auth) ) ) (?:\\*["'])? \s* [=:]
    | (?: (?<![a-z]) (?:pass|auth) | credentials? | signature ) (?:\\*["'])? \s* =
    | (?: (?<=[_"']) | (?<![^\n{{,])\ *) pass (?:\\*["'])? \s* :   # not: first pass: 3 s
    ) (\s*) {_VALUE}""",
    re.VERBOSE | re.IGNORECASE,
)
_OPTION = re.compile(
    rf"""( (?<!\S) (?: --? (?:[\w-]{{0,100}}[_-])? (?: {_NAME} | pass ) | -u | --user (?=\s+\S+:) ) \s+ )
    (?!-) (?: "[^"\n]*"? | '[^'\n]*'? | \S+ )""",
    re.VERBOSE | re.IGNORECASE,
)
_HEADER = re.compile(
    r"""( (?: authorization | cookie2? | x-(?:api|auth)-[\w-]{1,100} ) )
    (?: (\\*["'] \s*[=:]\s* \\*)  # quoted, as in JSON
        (?: "(?: \\. | [^"\\\n] )* | '(?: \\. | [^'\\\n] )* | [^\s"',;]+ )
      | (\s*[=:]\s*["']?)  # or to the end of the line
        (?: [^"'\n] | (?<==)"[^"\n]*" )* )""",
    re.VERBOSE | re.IGNORECASE,
)
_SCHEME = re.compile(r"\b(bearer|basic|negotiate)\s+(?=\S*\d)[\w+/.~=-]{8,}", re.IGNORECASE)
_PRIVATE_KEY = re.compile(
    r"""(-----BEGIN\ [A-Z0-9 ]{0,40}PRIVATE\ KEY) .*? (?: (?=-----END\ ) | \Z )
    | \A (?: (?!-----BEGIN) . )*? (?= -----END\ [A-Z0-9 ]{0,40}PRIVATE\ KEY )   # of a log that was cut""",
    re.VERBOSE | re.DOTALL,
)
_TELLTALE = re.compile(
    r"pass|pwd|token|secret|credential|signature|auth|key|cookie|session|jwt|^sig$|^code$|^sid$", re.IGNORECASE
)
"""Names, or parts of names, of query parameters whose values are credentials."""
_KNOWN = re.compile(
    r"""\b(?: (?:AKIA|ASIA)[A-Z0-9]{16} | gh[pousr]_\w{20,} | github_pat_\w{20,} | glpat-[\w-]{20,}
    | hf_[A-Za-z0-9]{20,} | dapi[0-9a-f]{32} | xox[abprs]-[\w-]{10,} | AIza[\w-]{30,}
    | eyJ[\w-]{8,}\.eyJ[\w-]+\.[\w-]* )""",
    re.VERBOSE,
)
"""Tokens recognised by their prefix: AWS, GitHub, GitLab, Hugging Face, Databricks, Slack, Google, JWT."""


def redact(uri: str) -> str:
    """Return a URI without user name, password and query, safe for logs.

    >>> redact("postgresql://me:secret@db.example/mlflow?sslmode=require")
    'postgresql://***@db.example/mlflow'
    """
    scheme, separator, rest = uri.partition("://")
    if not separator:  # not a URI, or one without its scheme
        return redact_text(re.sub(r"^[^/\s:]*:[^/\s]*@", "***@", uri))
    rest = re.sub(r"^[^/?#]*@", "***@", rest)  # unlike in a text, a blank does not end the URI
    return redact_text(f"{scheme}://{rest}").partition("?")[0]


def redact_text(text: str) -> str:
    """Return a text with its credentials replaced by ``***``.

    Credentials are found in URIs and their query parameters, in settings (environment, command line, JSON, YAML), in
    request headers, in private keys and in tokens with a known prefix. Query parameters stay unless their name suggests
    a credential. A secret outside a URI, without a telling name or a known prefix, cannot be recognised.

    >>> redact_text("cannot read http://me:secret@host/x?run=1&access_token=secret: refused")
    'cannot read http://***@host/x?run=1&access_token=***: refused'
    """
    text = _PRIVATE_KEY.sub(r"\1***", text)
    text = _USER.sub(r"\1***@", text)
    text = _HEADER.sub(r"\1\2\3***", text)
    text = _SCHEME.sub(r"\1 ***", text)
    text = _SETTING.sub(r"\1\2***", text)
    text = _OPTION.sub(r"\1***", text)
    text = _PARAMETER.sub(_masked, text)
    return _KNOWN.sub("***", text)


def _masked(parameter: re.Match[str]) -> str:
    separator, name, equals = parameter.groups()
    return f"{separator}{name}{equals}***" if _TELLTALE.search(unquote(unquote(name))) else parameter[0]
