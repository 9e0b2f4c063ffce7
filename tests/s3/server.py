"""An S3 server of the standard library, strict where a mock is lenient.

It speaks what obstore and pyarrow's S3 client (the AWS SDK for C++) use of S3, over HTTP and addressed by path: objects,
ranges, conditions, listings in pages of 1,000, bulk deletion and multipart uploads. Every signature (AWS Signature Version 4)
and every hash of a payload is verified, and a body that ends early is refused and leaves no object, as S3 promises.

moto was the first choice; every botocore wants ``python-dateutil<3``, and this release is tested with 4.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import formatdate
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from typing import BinaryIO
from urllib.parse import parse_qsl, quote, unquote, urlsplit
from xml.etree import ElementTree
from xml.sax.saxutils import escape

ACCESS_KEY, SECRET_KEY, REGION = "AKIDSEMRSM", "secret/of+the=tests", "eu-central-1"
PAGE = 1000  # keys in a listing, as on S3


@dataclass
class Bucket:
    """What a bucket holds, and the multipart uploads that are under way."""

    objects: dict[str, tuple[bytes, str]] = field(default_factory=dict)
    """Data and ETag of every object."""
    uploads: dict[str, dict[int, bytes]] = field(default_factory=dict)
    """Parts of every upload that is neither completed nor aborted."""

    def put(self, key: str, data: bytes, etag: str | None = None) -> str:
        """Set an object and return its ETag."""
        self.objects[key] = (data, etag or f'"{hashlib.md5(data).hexdigest()}"')
        return self.objects[key][1]


class RefusedError(Exception):
    """An error response of S3."""

    def __init__(self, status: HTTPStatus, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code = status, code


class S3Server(ThreadingHTTPServer):
    """A server on a free port of this machine; a context manager that runs it in a thread."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), S3Handler)
        self.buckets: dict[str, Bucket] = {}
        self.lock = threading.Lock()
        self.requests: list[tuple[str, str]] = []
        """Method and target of every request so far."""

    @property
    def url(self) -> str:
        """The endpoint."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    @contextmanager
    def running(self) -> Iterator[S3Server]:
        """Serve until the block ends."""
        thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, name="S3 server", daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self.shutdown()
            self.server_close()
            thread.join()

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that went away are part of the tests."""


class S3Handler(BaseHTTPRequestHandler):
    """One connection."""

    server: S3Server
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # headers and body in one segment: unbuffered, each response would wait for a delayed acknowledgement
    disable_nagle_algorithm = True
    timeout = 60
    parameters: Mapping[str, str]
    body: bytes

    def answer(self) -> None:
        """Verify a request, do what it asks and respond."""
        if self.headers.get("Transfer-Encoding") == "chunked":
            self.body, length = b"".join(_transferred(self.rfile)), 0
        else:
            length = int(self.headers.get("Content-Length", 0))
            self.body = self.rfile.read(length)
        target = urlsplit(self.path)
        self.parameters = dict(parse_qsl(target.query, keep_blank_values=True))
        bucket_name, _, key = unquote(target.path).removeprefix("/").partition("/")
        try:
            if len(self.body) < length:
                raise RefusedError(HTTPStatus.BAD_REQUEST, "IncompleteBody", "The body ended early.")
            with self.server.lock:
                self.server.requests.append((self.command, self.path))
                self.verify()
                if not key and self.command == "PUT":
                    self.server.buckets.setdefault(bucket_name, Bucket())
                    self.respond()
                    return
                if bucket_name not in self.server.buckets:
                    raise RefusedError(HTTPStatus.NOT_FOUND, "NoSuchBucket", "The specified bucket does not exist")
                bucket = self.server.buckets[bucket_name]
                if key:
                    getattr(self, f"{self.command.lower()}_object")(bucket, key)
                elif self.command == "HEAD":
                    self.respond()
                else:
                    {"GET": self.list_objects, "POST": self.delete_objects}[self.command](bucket)
        except RefusedError as error:
            text = f"<Error><Code>{error.code}</Code><Message>{escape(str(error))}</Message></Error>"
            self.respond(text.encode(), error.status)

    do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = answer  # noqa: N815 - http.server's names

    def verify(self) -> None:
        """Refuse a request whose signature or payload is wrong (AWS Signature Version 4)."""
        said = re.fullmatch(
            r"AWS4-HMAC-SHA256 Credential=([^/]+)/(\d{8}/[^/]+/s3/aws4_request), ?SignedHeaders=([^,]+), ?Signature=(\w+)",
            self.headers.get("Authorization", ""),
        )
        if said is None:
            raise RefusedError(HTTPStatus.FORBIDDEN, "AccessDenied", "Access Denied")
        access_key, scope, names, signature = said.groups()
        if access_key != ACCESS_KEY:
            raise RefusedError(HTTPStatus.FORBIDDEN, "InvalidAccessKeyId", "The AWS Access Key Id does not exist.")
        path = self.path.partition("?")[0]
        payload = self.headers["x-amz-content-sha256"]
        canonical = "\n".join(
            (
                self.command,
                path,
                "&".join(sorted(f"{quote(name, safe='')}={quote(value, safe='')}" for name, value in self.parameters.items())),
                *(f"{name}:{' '.join(self.headers.get(name, '').split())}" for name in names.split(";")),
                "",
                names,
                payload,
            )
        )
        to_sign = "\n".join(
            ("AWS4-HMAC-SHA256", self.headers["x-amz-date"], scope, hashlib.sha256(canonical.encode()).hexdigest())
        )
        secret = f"AWS4{SECRET_KEY}".encode()
        for part in (*scope.split("/"), to_sign):
            secret = hmac.new(secret, part.encode(), hashlib.sha256).digest()
        if not hmac.compare_digest(secret.hex(), signature):
            message = "The request signature we calculated does not match the signature you provided."
            raise RefusedError(HTTPStatus.FORBIDDEN, "SignatureDoesNotMatch", message)
        if payload.startswith("STREAMING-"):
            self.body = b"".join(_chunks(self.body))
        elif payload != "UNSIGNED-PAYLOAD" and payload != hashlib.sha256(self.body).hexdigest():
            raise RefusedError(HTTPStatus.BAD_REQUEST, "XAmzContentSHA256Mismatch", "The body is not what was signed.")

    def require(self, bucket: Bucket, key: str) -> None:
        """Refuse a request whose condition on the object does not hold."""
        etag = bucket.objects[key][1] if key in bucket.objects else None
        wanted, unwanted = self.headers.get("If-Match"), self.headers.get("If-None-Match")
        if (wanted is not None and wanted != etag) or (unwanted == "*" and etag is not None):
            message = "At least one of the preconditions you specified did not hold."
            raise RefusedError(HTTPStatus.PRECONDITION_FAILED, "PreconditionFailed", message)

    def get_object(self, bucket: Bucket, key: str) -> None:
        """GetObject and HeadObject, whole or a range."""
        if key not in bucket.objects:
            raise RefusedError(HTTPStatus.NOT_FOUND, "NoSuchKey", "The specified key does not exist.")
        self.require(bucket, key)
        data, etag = bucket.objects[key]
        headers = {"ETag": etag, "Last-Modified": formatdate(0, usegmt=True), "Accept-Ranges": "bytes"}
        span = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if span is None:
            self.respond(data, headers=headers)
            return
        first, last = span.groups()
        start = int(first) if first else max(len(data) - int(last), 0)
        stop = min(int(last) + 1, len(data)) if first and last else len(data)
        if start >= len(data):
            raise RefusedError(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, "InvalidRange", "The range cannot be satisfied.")
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(data)}"
        self.respond(data[start:stop], HTTPStatus.PARTIAL_CONTENT, headers)

    head_object = get_object

    def put_object(self, bucket: Bucket, key: str) -> None:
        """PutObject and UploadPart."""
        if "uploadId" in self.parameters:
            parts = self.upload(bucket)
            parts[int(self.parameters["partNumber"])] = self.body
            self.respond(headers={"ETag": f'"{hashlib.md5(self.body).hexdigest()}"'})
            return
        self.require(bucket, key)
        self.respond(headers={"ETag": bucket.put(key, self.body)})

    def post_object(self, bucket: Bucket, key: str) -> None:
        """CreateMultipartUpload and CompleteMultipartUpload."""
        if "uploads" in self.parameters:
            name = secrets.token_hex(8)
            bucket.uploads[name] = {}
            self.respond_xml("InitiateMultipartUploadResult", f"<UploadId>{name}</UploadId>")
            return
        self.require(bucket, key)
        parts = self.upload(bucket)
        named = ElementTree.fromstring(self.body).findall("{*}Part/{*}PartNumber")
        chosen = [parts[int(number.text or 0)] for number in named]
        hashes = b"".join(hashlib.md5(part).digest() for part in chosen)
        etag = bucket.put(key, b"".join(chosen), f'"{hashlib.md5(hashes).hexdigest()}-{len(chosen)}"')
        del bucket.uploads[self.parameters["uploadId"]]
        self.respond_xml("CompleteMultipartUploadResult", f"<ETag>{escape(etag)}</ETag>")

    def delete_object(self, bucket: Bucket, key: str) -> None:
        """DeleteObject and AbortMultipartUpload."""
        if "uploadId" in self.parameters:
            bucket.uploads.pop(self.parameters["uploadId"], None)
        else:
            bucket.objects.pop(key, None)
        self.respond(status=HTTPStatus.NO_CONTENT)

    def upload(self, bucket: Bucket) -> dict[int, bytes]:
        """The parts of the upload that a request names."""
        try:
            return bucket.uploads[self.parameters["uploadId"]]
        except KeyError:
            raise RefusedError(HTTPStatus.NOT_FOUND, "NoSuchUpload", "The upload does not exist.") from None

    def delete_objects(self, bucket: Bucket) -> None:
        """DeleteObjects."""
        keys = [element.text or "" for element in ElementTree.fromstring(self.body).iter() if element.tag.endswith("Key")]
        for key in keys:
            bucket.objects.pop(key, None)
        self.respond_xml("DeleteResult", "".join(f"<Deleted><Key>{escape(key)}</Key></Deleted>" for key in keys))

    def list_objects(self, bucket: Bucket) -> None:
        """ListObjectsV2: keys after a token, in order; with a delimiter, what they have in common before it."""
        prefix, delimiter = self.parameters.get("prefix", ""), self.parameters.get("delimiter", "")
        after = self.parameters.get("continuation-token") or self.parameters.get("start-after", "")
        written = quote if self.parameters.get("encoding-type") == "url" else escape
        entries: dict[str, str] = {}
        for key in sorted(bucket.objects):
            if not key.startswith(prefix):
                continue
            head, found, _ = key[len(prefix) :].partition(delimiter) if delimiter else (key, "", "")
            if found:
                common = f"{prefix}{head}{found}"
                entries.setdefault(common, f"<CommonPrefixes><Prefix>{written(common)}</Prefix></CommonPrefixes>")
            else:
                data, etag = bucket.objects[key]
                entries[key] = (
                    f"<Contents><Key>{written(key)}</Key><LastModified>1970-01-01T00:00:00.000Z</LastModified>"
                    f"<ETag>{escape(etag)}</ETag><Size>{len(data)}</Size><StorageClass>STANDARD</StorageClass></Contents>"
                )
        rest = [name for name in entries if name > after]
        page = list(islice(rest, min(int(self.parameters.get("max-keys", PAGE)), PAGE)))
        more = len(rest) > len(page)
        token = f"<NextContinuationToken>{escape(page[-1])}</NextContinuationToken>" if more else ""
        self.respond_xml(
            "ListBucketResult",
            f"<KeyCount>{len(page)}</KeyCount><IsTruncated>{str(more).lower()}</IsTruncated>{token}"
            + "".join(entries[name] for name in page),
        )

    def respond_xml(self, root: str, content: str) -> None:
        """Respond with a document."""
        self.respond(f'<{root} xmlns="http://s3.amazonaws.com/doc/2006-03-01/">{content}</{root}>'.encode())

    def respond(self, body: bytes = b"", status: HTTPStatus = HTTPStatus.OK, headers: Mapping[str, str] | None = None) -> None:
        """Send a response; its length is told in full and its body left out for HEAD."""
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if status != HTTPStatus.NO_CONTENT:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD" and status != HTTPStatus.NO_CONTENT:
            self.wfile.write(body)
        self.wfile.flush()

    def log_message(self, *arguments: object) -> None:
        """Nothing: the tests look at :attr:`S3Server.requests`."""


def _transferred(stream: BinaryIO) -> Iterator[bytes]:
    """The pieces of a body of ``Transfer-Encoding: chunked``."""
    while size := int(stream.readline().partition(b";")[0], 16):
        yield stream.read(size)
        stream.readline()
    while stream.readline().strip():  # trailers
        pass


def _chunks(body: bytes) -> Iterator[bytes]:
    """The data of an ``aws-chunked`` body, without its sizes and trailers."""
    while body:
        head, _, body = body.partition(b"\r\n")
        size = int(head.partition(b";")[0], 16)
        if size == 0:
            return
        yield body[:size]
        body = body[size + 2 :]
