"""Settings, read from the environment and from a `.env` beside `manage.py`."""

import os
from pathlib import Path

import dj_database_url
from django.core.management.utils import get_random_secret_key

BASE_DIR = Path(__file__).resolve().parent.parent


def read_env(path: Path) -> None:
    """Add the file's KEY=value lines to the environment, which wins."""
    if not path.is_file():
        return
    for line in path.read_text(encoding="utf-8").splitlines():
        key, _, value = (part.strip() for part in line.partition("="))
        if not key or key.startswith("#"):
            continue
        if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
            value = value[1:-1]
        os.environ.setdefault(key, value)


read_env(BASE_DIR / ".env")

# Nothing here signs what must outlive the process, so a fresh machine needs no key.
SECRET_KEY = os.environ.get("SECRET_KEY") or get_random_secret_key()
DEBUG = os.environ.get("DEBUG", "").lower() == "true"

DATABASE_URL = os.environ.get("DATABASE_URL")
# An empty DATABASES is Django's dummy backend: commands that need no database work.
DATABASES = {"default": dj_database_url.parse(DATABASE_URL)} if DATABASE_URL else {}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

INSTALLED_APPS = [
    "django.contrib.contenttypes",
    "django.contrib.auth",
    "django.contrib.postgres",
    "django.contrib.sessions",
    "aidscope",
]

TIME_ZONE = "UTC"
USE_TZ = True
