"""A stand-in for an object store: as much of the S3 protocol as pyarrow speaks, in memory, on the loopback network."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape


class S3Double:
    """One bucket, `plant`, from entering to leaving the block."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.puts: list[str] = []
        """Keys in the order in which they were written, or completed."""
        self.uploads: dict[str, dict[int, bytes]] = {}
        double = self

        class Handler(_Handler):
            store = double

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True

    def uri(self, path: str) -> str:
        """Return the address of a folder in the bucket, with keys."""
        port = self._server.server_address[1]
        return f"s3://KEY:SECRET@plant/{path}?endpoint_override=127.0.0.1:{port}&scheme=http&region=us-east-1"

    def __enter__(self) -> S3Double:
        threading.Thread(target=self._server.serve_forever, name="s3", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    store: S3Double

    def do_HEAD(self) -> None:
        key = self._key()
        if not key or key in self.store.objects:
            self._answer(200, b"", length=len(self.store.objects.get(key, b"")))
        else:
            self._answer(404, b"", length=0)

    def do_GET(self) -> None:
        key, query = self._key(), self._query()
        if "list-type" in query or not key:
            self._list(query)
            return
        content = self.store.objects.get(key)
        if content is None:
            self._answer(404, b"<Error><Code>NoSuchKey</Code><Message>there is none</Message></Error>")
            return
        found = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if found is None:
            self._answer(200, content)
            return
        begin, end = int(found[1]), min(int(found[2] or len(content)), len(content) - 1)
        headers = {"Content-Range": f"bytes {begin}-{end}/{len(content)}"}
        self._answer(206, content[begin : end + 1], headers)

    def do_PUT(self) -> None:
        key, query, content = self._key(), self._query(), self._body()
        tag = {"ETag": f'"{hashlib.md5(content).hexdigest()}"'}
        if "partNumber" in query:
            self.store.uploads[query["uploadId"]][int(query["partNumber"])] = content
        else:
            self.store.objects[key] = content
            self.store.puts.append(key)
        self._answer(200, b"", tag)

    def do_POST(self) -> None:
        key, query, _ = self._key(), self._query(), self._body()
        if "uploads" in query:
            name = f"upload-{len(self.store.uploads)}"
            self.store.uploads[name] = {}
            answer = f"<Bucket>plant</Bucket><Key>{escape(key)}</Key><UploadId>{name}</UploadId>"
            self._answer(200, f"<InitiateMultipartUploadResult>{answer}</InitiateMultipartUploadResult>".encode())
            return
        parts = self.store.uploads.pop(query["uploadId"])
        self.store.objects[key] = b"".join(parts[number] for number in sorted(parts))
        self.store.puts.append(key)
        answer = f"<Bucket>plant</Bucket><Key>{escape(key)}</Key><ETag>x</ETag>"
        self._answer(200, f"<CompleteMultipartUploadResult>{answer}</CompleteMultipartUploadResult>".encode())

    def _list(self, query: dict[str, str]) -> None:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        keys, folders = [], set()
        for key in sorted(self.store.objects):
            if not key.startswith(prefix):
                continue
            rest = key[len(prefix) :]
            if delimiter and delimiter in rest:
                folders.add(prefix + rest.partition(delimiter)[0] + delimiter)
            else:
                keys.append(key)
        contents = "".join(
            f"<Contents><Key>{escape(key)}</Key><Size>{len(self.store.objects[key])}</Size>"
            "<LastModified>2026-01-01T00:00:00.000Z</LastModified><ETag>x</ETag></Contents>"
            for key in keys
        )
        prefixes = (f"<Prefix>{escape(each)}</Prefix>" for each in sorted(folders))
        common = "".join(f"<CommonPrefixes>{each}</CommonPrefixes>" for each in prefixes)
        text = f"<Name>plant</Name><KeyCount>{len(keys) + len(folders)}</KeyCount><IsTruncated>false</IsTruncated>"
        self._answer(200, f"<ListBucketResult>{text}{contents}{common}</ListBucketResult>".encode())

    def _key(self) -> str:
        return unquote(urlsplit(self.path).path).removeprefix("/plant").lstrip("/")

    def _query(self) -> dict[str, str]:
        found = parse_qs(urlsplit(self.path).query, keep_blank_values=True)
        return {name: values[0] for name, values in found.items()}

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "") == "chunked":
            content = b"".join(self._chunks())
        else:
            content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if "aws-chunked" not in self.headers.get("Content-Encoding", ""):
            return content
        whole, rest = b"", content
        while True:
            head, _, rest = rest.partition(b"\r\n")
            size = int(head.partition(b";")[0], 16)
            if not size:
                return whole
            whole, rest = whole + rest[:size], rest[size + 2 :]

    def _chunks(self) -> Iterator[bytes]:
        while size := int(self.rfile.readline().partition(b";")[0], 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()

    def _answer(
        self, status: int, content: bytes, headers: dict[str, str] | None = None, length: int | None = None
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content) if length is None else length))
        self.send_header("Content-Type", "application/xml")
        self.send_header("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        pass
