"""Passwords and tokens in addresses: told to nobody, and written nowhere."""

import re
import urllib.parse

__all__ = ["MASK", "login_of", "masked", "masked_keys", "masked_text", "without_secrets"]

MASK = "***"
SHORTEST = 4  # characters of a secret that is looked for by itself; less would be found in any words
# a quote ends an address, unless what follows is still its login
IN_TEXT = re.compile(r"[A-Za-z][A-Za-z0-9+.-]{0,30}://(?:[^\s'\"<>]|['\"<>](?=[^\s/'\"<>]{0,200}@))+")
MISTYPED = re.compile(r"(?:[A-Za-z][A-Za-z0-9+.-]+:/|//)(?!/)")  # http:/user:password@host


def _split(uri: str) -> tuple[str, str, str, str]:
    """What comes before the user, user and password, the place, and query and fragment with their mark."""
    scheme, mark, rest = uri.partition("://")
    if not mark:
        found = MISTYPED.match(uri)
        scheme, rest = "", uri
        if found and "@" in uri:
            scheme, mark, rest = found[0], "", uri[found.end() :]
    end = next((i for i, c in enumerate(rest) if c in "/?#"), len(rest))
    user, at, place = rest[:end].rpartition("@")
    if at:
        place += rest[end:]
    elif "@" in rest and re.match(r"[^/?#:@]*:(?!\d*([/?#]|$))", rest):
        # a password with a slash in it, as it is written though it should be %2F
        user, _, place = rest.rpartition("@")
    elif mark:
        place = rest
    else:
        return uri, "", "", ""
    end = next((i for i, c in enumerate(place) if c in "?#;"), len(place))
    return scheme + mark, user, place[:end], place[end:]


def login_of(uri: str) -> tuple[str, str, str]:
    """An address without its user and password, and these two as they are meant (%40 for @ and the like)."""
    before, user, place, query = _split(uri)
    name, _, password = user.partition(":")
    return before + place + query, urllib.parse.unquote(name), urllib.parse.unquote(password)


def masked(uri: str) -> str:
    """An address with its password, and whatever its query and fragment say, as ***; a user's name alone, which may be
    a token, too. What is no address comes back as it is.
    """
    before, user, place, query = _split(uri)
    name, colon, password = user.partition(":")
    if user:
        before += f"{name}:{MASK if password else ''}@" if colon else f"{MASK}@"
    parts = re.split("([?#&;])", query)
    values = [
        p if p in ("", "?", "#", "&", ";") else f"{p.partition('=')[0]}={MASK}" if "=" in p else MASK for p in parts
    ]
    return before + place + "".join(values)


def masked_text(text: str) -> str:
    """`text` with every address in it masked."""
    return IN_TEXT.sub(lambda found: masked(found[0]), text) if "://" in text else text


def without_secrets(text: str, *uris: str) -> str:
    """`text`, such as a library's message, without what is secret of these addresses, however it is quoted there."""
    for uri in filter(None, uris):
        text = text.replace(uri, masked(uri))
        _, user, _, query = _split(uri)
        name, colon, password = user.partition(":")
        secrets = [password if colon else name, *(p.partition("=")[2] or p for p in re.split("[?#&;]", query))]
        for secret in secrets:
            for written in {secret, urllib.parse.unquote(secret), urllib.parse.quote(secret, safe="")}:
                if len(written) >= SHORTEST:
                    text = text.replace(written, MASK)
    return masked_text(text)


def masked_keys(values: dict) -> dict:
    """A config's keys and values, the addresses (`..._uri`, `..._url`) among them masked."""
    return {
        k: masked_keys(v)
        if isinstance(v, dict)
        else masked(v)
        if isinstance(v, str) and k.endswith(("_uri", "_url"))
        else v
        for k, v in values.items()
    }
