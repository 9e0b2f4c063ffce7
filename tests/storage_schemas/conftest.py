"""Buckets for the tests of object stores."""

from tests.s3.bucket import s3_fixture, s3_server_fixture

__all__ = ["s3_fixture", "s3_server_fixture"]
