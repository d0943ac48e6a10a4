"""Folders in an object store, by URI (`s3://bucket/folder`, `gs://...`, `abfs://...`), through pyarrow's file systems.

The store of AWS, Google or Azure is reached with their usual settings: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY,
AWS_SESSION_TOKEN, AWS_REGION or ~/.aws; GOOGLE_APPLICATION_CREDENTIALS; AZURE_STORAGE_ACCOUNT and the like.
AWS_ENDPOINT_URL, or `?endpoint_override=HOST:PORT&scheme=http` in the URI, names another store that speaks S3.
"""

from __future__ import annotations

import errno
import os
import random
import re
import time
from collections.abc import Callable, Iterator
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlsplit

from errors import InputError

if TYPE_CHECKING:
    from pyarrow import NativeFile
    from pyarrow.fs import FileSystem  # takes a tenth of a second to import, and a folder on disk does without

T = TypeVar("T")

PART_BYTES = 16 << 20
"""Bytes of one request: what a connection that is cut costs at most."""
BACK_OFF_SECONDS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
"""Pauses before another try, each up to twice as long, so that nodes do not come back together."""
ANSWER_SECONDS, CONNECT_SECONDS = 60.0, 10.0
"""Timeouts of S3: its SDK gives up a request that is not answered within three seconds, and asks for it again."""
FORMS = "s3://BUCKET/FOLDER, gs://BUCKET/FOLDER, or abfs://CONTAINER@ACCOUNT.dfs.core.windows.net/FOLDER"
_CODE = re.compile(r"AWS Error (\w+)(?: \(HTTP status (\d+)\))?")
_BUSY = (408, 425, 429)
"""HTTP statuses from 400 to 499 that are worth another try."""
_EXPIRED = re.compile(r"Expired|EXPIRED|has expired|InvalidToken")
_REFUSED = re.compile(
    r"ACCESS_DENIED|INVALID_ACCESS_KEY_ID|SIGNATURE_DOES_NOT_MATCH|INVALID_CLIENT_TOKEN_ID|UNRECOGNIZED_CLIENT|"
    r"MISSING_AUTHENTICATION_TOKEN|NOT_AUTHORIZED|PERMISSION_DENIED|UNAUTHENTICATED|HTTP status 40[13]\b"
)
_NO_BUCKET = re.compile(r"NO_SUCH_BUCKET|ContainerNotFound|bucket does not exist|Bucket .*not found", re.IGNORECASE)
_UNREACHED = re.compile(r"curlCode: (?:6|7|28|35|60)\b,?\s*([^;]*)")


class StoreError(InputError):
    """A store that does not do what it is asked; the text is one line."""

    def __init__(self, text: str, *, is_transient: bool = False) -> None:
        super().__init__(text)
        self.is_transient = is_transient
        """The same may work later, such as where the store was out of reach for longer than the tries took."""


def open_filesystem(uri: str) -> tuple[FileSystem, str]:
    """Return the file system of a URI, or of a path on disk, and the path in it.

    Raises:
        ValueError: it is not a URI that pyarrow knows.
        OSError: of the store.
    """
    from pyarrow.fs import FileSystem, S3FileSystem

    filesystem, path = FileSystem.from_uri(uri)
    if isinstance(filesystem, S3FileSystem):
        # A URI cannot say it, so the file system is made again from what pickling it gives: its arguments.
        _, (arguments,) = filesystem.__reduce__()
        timeouts = {"request_timeout": ANSWER_SECONDS, "connect_timeout": CONNECT_SECONDS}
        filesystem = S3FileSystem(**{**arguments, **timeouts})
    return filesystem, path


def cache_folder(name: str) -> Path:
    """Return the folder `name` of this project in the user's cache (XDG_CACHE_HOME, or ~/.cache)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "twotower", name)


def is_uri(place: str | Path) -> bool:
    """Tell whether `place` names a folder of an object store, and not a path."""
    return "://" in str(place)


def join(place: str, *names: str) -> str:
    """Return the path or URI of something in a folder; options of a URI (`?endpoint_override=...`) stay at its end."""
    folder, mark, options = place.partition("?") if is_uri(place) else (place, "", "")
    return "/".join([folder.rstrip("/"), *names]) + mark + options


def check_uri(uri: str) -> None:
    """Raise `InputError` for credentials in a URI, which would appear in logs and in the parameters of a run."""
    user, at, _ = urlsplit(uri).netloc.rpartition("@")
    if at and (":" in user or not uri.startswith("abfs")):  # abfs://CONTAINER@ACCOUNT... has no secret
        scheme = uri.partition(":")[0]
        raise InputError(f"{scheme}://... holds credentials; leave them out of the URI and use the environment")


def read_file(place: str | Path) -> bytes:
    """Return the content of the file at a path or URI.

    Raises:
        OSError: it cannot be read, or is a URI and is not there.
        StoreError: of the store.
    """
    if not is_uri(place):
        return Path(place).read_bytes()
    address, mark, options = str(place).partition("?")
    folder, _, name = address.rpartition("/")
    content = StoreFolder(f"{folder}{mark}{options}").read(name)
    if content is None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(place))
    return content


class MissingFileError(StoreError):
    """A file that is not in the store."""


class StoreFolder:
    """A folder of an object store; its methods try again where that may help, and may be called from several threads.

    They raise `StoreError` if the store cannot be reached, refuses, or is too busy for too long.
    """

    def __init__(self, uri: str) -> None:
        check_uri(uri)
        self.uri = uri
        self._has_answered = False

    def sizes(self) -> dict[str, int]:
        """Return the size in bytes of each file in the folder itself, by name; none if there is no such folder."""
        return self._try("be listed", self._list)

    def read(self, name: str) -> bytes | None:
        """Return the content of a file; None if there is none."""

        def read() -> bytes | None:
            try:
                with self._filesystem.open_input_file(f"{self._path}/{name}") as file:
                    content: bytes = file.read()
                    return content
            except FileNotFoundError:
                self._list()  # a bucket that does not exist is an error of its own
                return None

        return self._try("be read", read)

    def parts(self, name: str) -> Iterator[bytes]:
        """Yield the content of a file, in order; after a failure, only the part that has failed is asked for again.

        Raises:
            MissingFileError: there is no such file.
        """
        file = self._try("be read", lambda: self._open(name))
        with file:
            for start in range(0, file.size(), PART_BYTES):
                yield self._try("be read", partial(file.read_at, PART_BYTES, start))

    def upload(self, path: Path, name: str) -> None:
        """Write a file, which appears with all of its content or not at all."""

        def upload() -> None:
            with path.open("rb") as source, self._filesystem.open_output_stream(f"{self._path}/{name}") as target:
                while part := source.read(PART_BYTES):
                    target.write(part)

        self._try("be written", upload)

    def write(self, name: str, content: bytes) -> None:
        """Write a small file, as `upload` does."""

        def write() -> None:
            with self._filesystem.open_output_stream(f"{self._path}/{name}") as target:
                target.write(content)

        self._try("be written", write)

    def delete(self, name: str) -> None:
        """Remove a file; one that is not there is not missed."""

        def delete() -> None:
            try:
                self._filesystem.delete_file(f"{self._path}/{name}")
            except FileNotFoundError:
                return

        self._try("be written", delete)

    def _open(self, name: str) -> NativeFile:
        try:
            return self._filesystem.open_input_file(f"{self._path}/{name}")
        except FileNotFoundError:
            self._list()
            raise MissingFileError(f"{join(self.uri, name)} is missing: upload it again") from None

    def _list(self) -> dict[str, int]:
        from pyarrow.fs import FileSelector, FileType

        try:  # with `allow_not_found`, a bucket that does not exist would be an empty folder
            found = self._filesystem.get_file_info(FileSelector(self._path))
        except FileNotFoundError:
            return {}
        return {info.base_name: info.size for info in found if info.type == FileType.File}

    @cached_property
    def _opened(self) -> tuple[FileSystem, str]:
        filesystem, path = open_filesystem(self.uri)
        return filesystem, path.rstrip("/")

    @property
    def _filesystem(self) -> FileSystem:
        return self._opened[0]

    @property
    def _path(self) -> str:
        return self._opened[1]

    def _try(self, what: str, request: Callable[[], T]) -> T:
        try:
            result = with_retries(request, has_answered=self._has_answered)
        except InputError:
            raise
        except (OSError, ValueError) as error:  # pyarrow's own errors are subclasses of these
            raise self._explain(what, error) from error
        self._has_answered = True
        return result

    def _explain(self, what: str, error: Exception) -> StoreError:
        if not is_transient(error):
            try:
                self._list()  # an answer to HEAD has no text: this one says whether it is bucket or credentials
            except (OSError, ValueError) as again:
                error = again
        return StoreError(f"{self.uri} cannot {what}: {explain(error)}", is_transient=is_transient(error))


def with_retries(request: Callable[[], T], *, has_answered: bool = True) -> T:
    """Return what a request to a store returns; try again, after longer and longer pauses, where that may help.

    A store that has not answered before and cannot be connected to is not tried again: the SDK has done so for
    seconds, and most likely the address is wrong.

    Raises:
        OSError, ValueError: the last failure.
    """
    pauses = iter(BACK_OFF_SECONDS)
    while True:
        try:
            return request()
        except (OSError, ValueError) as error:
            is_wrong_address = not has_answered and _UNREACHED.search(str(error)) is not None
            pause = None if is_wrong_address or not is_transient(error) else next(pauses, None)
            if pause is None:
                raise
        time.sleep(pause * random.uniform(1, 2))


def is_transient(error: Exception) -> bool:
    """Tell whether a request to a store that has failed may work later."""
    if isinstance(error, StoreError):
        return error.is_transient
    if isinstance(error, FileNotFoundError | PermissionError | ValueError):
        return False
    code = _CODE.search(str(error))
    status = int(code[2]) if code is not None and code[2] else 0
    if 400 <= status < 500 and status not in _BUSY:
        return False
    return not any(form.search(str(error)) for form in (_EXPIRED, _REFUSED, _NO_BUCKET))


def explain(error: Exception) -> str:
    """Return what is wrong, and what to do, from the error of a request to a store."""
    text = " ".join(str(error).split())
    if _EXPIRED.search(text):
        return "the credentials have expired; renew them (such as AWS_SESSION_TOKEN), and start again"
    if _NO_BUCKET.search(text):
        return "there is no such bucket; use one that exists, and the endpoint that has it (AWS_ENDPOINT_URL)"
    if _REFUSED.search(text):
        return f"the store refuses these credentials ({_code(text)}); use some that are allowed to"
    if (unreached := _UNREACHED.search(text)) is not None:
        reason = unreached[1].strip()
        return f"no store answers there ({reason}); use the right endpoint (AWS_ENDPOINT_URL), or try again"
    if isinstance(error, ValueError):
        return f"{text}; use {FORMS}"
    return f"the store fails again and again ({_code(text)}); try again later"


def _code(text: str) -> str:
    code = _CODE.search(text)
    return text[:200] if code is None else code[0].removeprefix("AWS Error ")
