"""The image service of the examples, with fakes: what its clients get when things go wrong, in no time."""

from __future__ import annotations

import importlib
import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

from poolkit.testing import FakePool

pytest.importorskip("uvicorn", reason="what serves the service")
TestClient = pytest.importorskip("starlette.testclient", reason="what the service is made with").TestClient
EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(EXAMPLES)
    module = importlib.import_module("image_service")
    yield module
    module.pool.shutdown()
    del sys.modules["image_service"]


@pytest.fixture
def client(service: ModuleType) -> TestClient:
    return TestClient(service.app)  # not entered: without the pool of its lifespan


@pytest.fixture(scope="module")
def picture() -> bytes:
    made = io.BytesIO()
    Image.new("RGB", (400, 300), "red").save(made, "PNG")
    return made.getvalue()


def test_a_thumbnail_is_made(fake_pool: FakePool, client: TestClient, picture: bytes) -> None:
    response = client.post("/thumbnail?width=100", content=picture)
    assert response.status_code == 200
    with Image.open(io.BytesIO(response.content)) as made:
        assert (made.format, made.size) == ("WEBP", (100, 75))


def test_a_picture_that_hangs_is_a_504(fake_pool: FakePool, service: ModuleType, client: TestClient) -> None:
    fake_pool.when(service.thumbnail).hangs()
    response = client.post("/thumbnail", content=b"a picture")
    assert response.status_code == 504
    assert "timeout of 5" in response.text
    assert fake_pool.now == 5


def test_a_picture_that_kills_its_decoder_costs_its_own_request(
    fake_pool: FakePool, service: ModuleType, client: TestClient
) -> None:
    fake_pool.when(service.thumbnail, b"bad", 200).crashes("SIGSEGV")
    fake_pool.when(service.thumbnail, b"good", 200).returns(b"small")
    codes = [client.post("/thumbnail", content=data).status_code for data in (b"bad", b"good")]
    assert codes == [422, 200]


def test_a_full_queue_is_a_503_that_says_when_to_come_again(
    fake_pool: FakePool, service: ModuleType, client: TestClient
) -> None:
    import poolkit

    fake_pool.when(service.thumbnail).raises(poolkit.QueueFull("full"))
    response = client.post("/thumbnail", content=b"a picture")
    assert response.status_code == 503
    assert response.headers["Retry-After"] == "1"


def test_thumbnails_of_a_form_come_as_events_each_with_its_own_error(
    fake_pool: FakePool, service: ModuleType, client: TestClient
) -> None:
    fake_pool.when(service.thumbnail, b"bad", 200).crashes("SIGSEGV")
    fake_pool.when(service.thumbnail, b"good", 200).returns(b"small")
    files = [("file", (name, name.encode())) for name in ("bad", "good")]
    response = client.post("/thumbnails", files=files)
    assert response.headers["content-type"].startswith("text/event-stream")
    events = [json.loads(line.removeprefix("data: ")) for line in response.text.split("\n\n") if line]
    found = {each["name"]: each.get("webp") or each["error"] for each in events}
    assert found["good"] == "c21hbGw="
    assert "SIGSEGV" in found["bad"]


@pytest.mark.parametrize("width", ["0", "-1", "x", "2001"])
def test_a_width_without_sense_is_a_400(client: TestClient, width: str) -> None:
    assert client.post(f"/thumbnail?width={width}", content=b"").status_code == 400
