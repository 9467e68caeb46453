"""Passwords and tokens in addresses, as users, libraries and messages write them."""

import pytest

from src.config import ConfigError, load_config, parse_overrides
from src.config.__main__ import main
from src.runtime.errors import UserError, shown
from src.runtime.masking import login_of, masked, masked_text, without_secrets


@pytest.mark.parametrize(
    ("uri", "told"),
    [
        ("http://user:secret@host:5000/path", "http://user:***@host:5000/path"),
        ("HTTPS://User:Secret@Host", "HTTPS://User:***@Host"),
        ("http://secret@host", "http://***@host"),
        ("http://:secret@host", "http://:***@host"),
        # as people write them, though @, /, ? and # should be escaped
        ("http://user:sec@ret@host/", "http://user:***@host/"),
        ("http://user:sec/ret@host/x", "http://user:***@host/x"),
        ("http://user:sec?re#t@host/x", "http://user:***@host/x"),
        ("user:secret@host/x", "user:***@host/x"),
        ("http://host/x?token=secret&api_key=secret#access=secret", "http://host/x?token=***&api_key=***#access=***"),
        ("obs://bucket/x?Signature=secret;Key=secret", "obs://bucket/x?Signature=***;Key=***"),
        ("http://host/x;token=secret", "http://host/x;token=***"),
        ("http:/user:secret@host/x", "http:/user:***@host/x"),
        ("//user:secret@host", "//user:***@host"),
        ("http://host/x?secret", "http://host/x?***"),
        ("postgresql+psycopg://u:secret@db:5432/x", "postgresql+psycopg://u:***@db:5432/x"),
    ],
)
def test_what_is_secret_of_an_address(uri, told):
    assert masked(uri) == told
    assert masked(told) == told
    assert masked_text(f"at '{uri}': no answer") == f"at '{told}': no answer" or "://" not in uri
    assert "secret" not in str(UserError(f"{uri}: can't log there")).lower() or "://" not in uri


@pytest.mark.parametrize("mark", ["'", '"', "<", ">"])
def test_a_quote_in_a_password_ends_no_address(mark):
    told = masked_text(f"'http://user:sec{mark}ret@host/x' and 'http://host/y', see 'a@b'")
    assert told == "'http://user:***@host/x' and 'http://host/y', see 'a@b'"


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "mlruns",
        "/a/b@c:d",
        "file:///data/mlruns",
        "http://host:5000/a@b",
        "http://[::1]:5000/x",
        "databricks://name",
    ],
)
def test_what_has_nothing_secret_stays(uri):
    assert masked(uri) == masked_text(uri) == uri


def test_a_login_is_what_its_escapes_mean():
    assert login_of("http://me:sec%40ret@host:1/x") == ("http://host:1/x", "me", "sec@ret")
    assert login_of("http://host:1/x") == ("http://host:1/x", "", "")


def test_what_a_library_says_of_an_address():
    uri = "http://me:sec%40ret@host/x?token=abcdef"
    said = "me:sec@ret refused at host (token abcdef), Basic sec%40ret, http://me:sec%40ret@host/x?token=abcdef/api"
    told = without_secrets(said, uri, "")
    assert "sec" not in told and "abcdef" not in told and "refused at host" in told


def test_a_long_message_is_masked_in_no_time():
    assert len(masked_text("x" * 10**6 + "://a:b@c")) == 10**6 + len("://a:***@c")


def test_mistakes_on_the_command_line_tell_no_password(capsys, monkeypatch, tmp_path):
    uri = f"http://me:hidden{'x' * 200}@host"
    with pytest.raises(ConfigError) as error:
        parse_overrides([uri])
    assert "hidden" not in str(error.value)
    assert "hidden" not in shown([uri])
    for words in ({"lr_steps": uri}, {"exif": uri}, {"batch_size": uri}):
        with pytest.raises(ConfigError) as error:
            load_config("configs/shapes.yaml", words)
        assert "hidden" not in str(error.value)
    (tmp_path / "c.yaml").write_text(f"mlflow_tracking_uri: {uri}\n")
    monkeypatch.setattr("sys.argv", ["config", str(tmp_path / "c.yaml")])
    main()
    assert "http://me:***@host" in capsys.readouterr().out
