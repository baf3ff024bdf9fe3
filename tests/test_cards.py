"""What a file says about itself: metadata of a training, description, HTML, model card, and the hub (one of our own, without network)."""

import base64
import hashlib
import http.server
import io
import json
import os
import subprocess
import sys
import threading

import pytest
import torch
from PIL import Image

from blora_nb.assets import fingerprint
from blora_nb.files.cards import model_card, upload
from blora_nb.files.descriptions import describe_in_full, facts, norms
from blora_nb.files.metadata import model_hash, training_metadata
from blora_nb.lora import BLoRA
from blora_nb.settings import TrainingSettings
from test_formats import made, mixed_rank


@pytest.fixture
def described(pipe, picture):
    """A B-LoRA with all that a training can say about itself."""
    return BLoRA(
        made().state_dict,
        training_metadata(
            pipe,
            TrainingSettings(instance_prompt="A [v] | fish", rank=4, license="cc-by-4.0"),
            picture,
        ),
    )


def test_metadata_of_a_training_is_in_the_file_and_comes_back(pipe, picture, described, tmp_path):
    for format in ("diffusers", "sgm", "peft"):
        found = BLoRA.load(described.save(tmp_path / format, format)).metadata
        assert json.loads(found["training"])["rank"] == 4
        assert found["modelspec.trigger_phrase"] == "A [v] | fish"
        assert found["modelspec.license"] == "cc-by-4.0"
        assert found["base_model"] == "tiny_sdxl"
        assert found["base_model_sha256"].startswith(fingerprint())
        assert json.loads(found["versions"])["torch"] == torch.__version__
        thumbnail = Image.open(
            io.BytesIO(base64.b64decode(found["modelspec.thumbnail"].split(",")[1]))
        )
        assert thumbnail.size == (128, 128)
        assert (
            abs(
                thumbnail.convert("L").resize((1, 1)).getpixel((0, 0))
                - picture.convert("L").resize((1, 1)).getpixel((0, 0))
            )
            < 8
        )
    other = picture.copy()
    other.putpixel((0, 0), (1, 2, 3))
    assert (
        training_metadata(pipe, TrainingSettings(), other)["picture_sha256"]
        != found["picture_sha256"]
    )
    assert "picture_sha256" not in training_metadata(pipe, TrainingSettings())


def test_a_files_words_do_not_become_code_in_a_card():
    for base in ('x"); import os; ("/', "a/b\n---\nevil", "user/model/more"):
        card = model_card(BLoRA(made().state_dict, {"base_model": base}), "u/n")
        code = card.split("```python")[1].split("```")[0]
        assert 'load_pipeline("tiny")' in code
        assert "import os" not in code
        assert "evil" not in code
    assert "license: mit" in model_card(
        BLoRA(made().state_dict, {"modelspec.license": "MIT"}), "u/n"
    )


def test_the_hubs_cache_names_the_base_by_its_hash(tmp_path):
    from types import SimpleNamespace

    blob = tmp_path / "blobs" / ("ab" * 32)
    blob.parent.mkdir()
    blob.write_bytes(b"not read")
    (tmp_path / "snapshot" / "unet").mkdir(parents=True)
    (tmp_path / "snapshot" / "unet" / "diffusion_pytorch_model.fp16.safetensors").symlink_to(blob)
    pipe = SimpleNamespace(
        unet=SimpleNamespace(config={"_name_or_path": str(tmp_path / "snapshot" / "unet")}),
        config={"_name_or_path": "user/model"},
    )
    assert model_hash(pipe) == ("user/model", "ab" * 32)


def test_norms_are_those_of_the_change(described):
    for layer, norm in norms(described).items():
        a, b = described.layers[layer]
        assert norm == pytest.approx((b @ a).norm().item(), rel=1e-4)


def test_a_description_says_what_it_is_and_how_to_use_it(described, tmp_path):
    text = describe_in_full(
        BLoRA.load(described.save(tmp_path / "x.safetensors", "sgm")), "x.safetensors"
    )
    for part in (
        "kohya with SDXL's own block names",
        "content half",
        "16 layers, rank 4",
        "the teaching model",
        "A [v] | fish",
        "cc-by-4.0",
        "attn2.to_out.0",
        "--style_B_LoRA x.safetensors",
        "--prompt 'A [v] | fish'",
    ):
        assert part in text
    assert "rank 2, 6" in describe_in_full(made(rank=mixed_rank).style, "x")
    assert "--content" not in describe_in_full(described.style, "x")
    page = described._repr_html_()
    assert page.count('<img src="data:image/jpeg;base64,') == 1
    assert "<svg" in page
    assert len(page) < 30_000


def test_a_prompt_cannot_slip_a_command_into_what_is_copied():
    trap = BLoRA(made().state_dict, {"modelspec.trigger_phrase": 'A"; rm -rf ~; "'})
    assert """--prompt 'A"; rm -rf ~; "'""" in describe_in_full(trap, "x")
    assert r'generate(pipe, "A\"; rm' in model_card(trap, "a/b")


def test_a_model_card_has_the_header_the_hub_reads(described):
    from huggingface_hub import ModelCard

    card = ModelCard(model_card(described, "user/fish"))
    card.data.to_dict()
    assert card.data.license == "cc-by-4.0"
    assert "lora" in card.data.tags
    assert card.data.get("instance_prompt") == "A [v] | fish"
    sdxl = made(width=1280, context=2048, depth=1, rank=lambda layer: 1)
    assert (
        ModelCard(model_card(sdxl, "user/x")).data.base_model
        == "stabilityai/stable-diffusion-xl-base-1.0"
    )
    assert (
        ModelCard(
            model_card(BLoRA(sdxl.state_dict, {"base_model": "my_own_sdxl"}), "user/x")
        ).data.base_model
        is None
    )  # a folder; the hub knows no such model
    assert ("licence", "cc-by-4.0") in facts(described, norms(described))
    assert ModelCard(model_card(described, "user/x")).data.license == "cc-by-4.0"
    own = BLoRA(described.state_dict, described.metadata | {"modelspec.license": "My School Only"})
    data = ModelCard(model_card(own, "user/x")).data
    assert (data.license, data.license_name) == (
        "other",
        "my_school_only",
    )  # an unknown name in the first place the hub refuses


# --- a hub of our own: enough of the Hugging Face hub's interface for one repository ---


class Hub(http.server.BaseHTTPRequestHandler):
    files, requests = {}, []

    def answer(self, code, body=b"", **headers):
        self.send_response(code)
        for name, value in {
            "Content-Length": len(body),
            "Content-Type": "application/json",
            **headers,
        }.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_GET(self):
        self.requests.append((self.command, self.path))
        path = self.path.split("?")[0]
        if path.startswith("/user/name/resolve/main/"):
            if (data := self.files.get(path.removeprefix("/user/name/resolve/main/"))) is None:
                return self.answer(404, X_Error_Code="EntryNotFound")
            return self.answer(
                200,
                data,
                ETag=f'"{hashlib.md5(data).hexdigest()}"',
                X_Repo_Commit="c" * 40,
                **({"X-Linked-Size": 5 * 2**30, "X-Linked-ETag": '"2"'} if data == b"huge" else {}),
            )
        if path == "/api/models/user/name" or path == "/api/models/user/name/revision/main":
            return self.answer(
                200,
                json.dumps(
                    {
                        "id": "user/name",
                        "sha": "c" * 40,
                        "siblings": [{"rfilename": name} for name in self.files],
                    }
                ).encode(),
            )
        if path.startswith("/api/models/user/name/tree/"):
            return self.answer(
                200,
                json.dumps(
                    [
                        {"type": "file", "path": n, "size": len(d), "oid": "0" * 40}
                        for n, d in self.files.items()
                    ]
                ).encode(),
            )
        self.answer(404, X_Error_Code="RepoNotFound")

    do_HEAD = do_GET

    def do_POST(self):
        self.requests.append((self.command, self.path))
        data = self.rfile.read(int(self.headers["Content-Length"]))
        if "/preupload/" in self.path:
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False, "oid": None}
                for f in json.loads(data)["files"]
            ]
            return self.answer(200, json.dumps({"files": files}).encode())
        if "/commit/" in self.path:
            for line in map(json.loads, data.splitlines()):
                if line["key"] == "file":
                    self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            address = f"http://{self.headers['Host']}/user/name/commit/{'c' * 40}"
            return self.answer(
                200,
                json.dumps({"success": True, "commitOid": "c" * 40, "commitUrl": address}).encode(),
            )
        self.answer(
            200,
            json.dumps(
                {"url": f"http://{self.headers['Host']}/user/name", "name": "user/name"}
            ).encode(),
        )

    def log_message(self, *_):
        pass


@pytest.fixture
def hub():
    Hub.files, Hub.requests = {}, []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def load_elsewhere(source, tmp_path, **environment):
    """`python -m blora_nb inspect` in a process of its own, with a hub cache of its own."""
    environment = {
        **os.environ,
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_DISABLE_XET": "1",
        **environment,
    }
    return subprocess.run(
        [sys.executable, "-m", "blora_nb", "inspect", source],
        capture_output=True,
        text=True,
        timeout=300,
        env=environment,
    )


def test_upload_then_load_by_id(described, hub, tmp_path):
    assert upload(described, "user/name", token="hf_x", endpoint=hub).endswith("c" * 40)
    assert set(Hub.files) >= {"pytorch_lora_weights.safetensors", "README.md"}
    assert b"A [v] | fish" in Hub.files["README.md"]
    (tmp_path / "x.safetensors").write_bytes(Hub.files["pytorch_lora_weights.safetensors"])
    assert BLoRA.load(tmp_path / "x.safetensors").fingerprint == described.fingerprint
    with pytest.raises(
        FileExistsError, match="user/name has a pytorch_lora_weights.safetensors already"
    ):
        upload(described, "user/name", token="hf_x", endpoint=hub)

    found = load_elsewhere("user/name", tmp_path, HF_ENDPOINT=hub)
    assert found.returncode == 0 and described.fingerprint in found.stdout, found.stderr
    again = load_elsewhere("user/name", tmp_path, HF_HUB_OFFLINE="1")  # out of the cache
    assert again.returncode == 0 and described.fingerprint in again.stdout, again.stderr
    Hub.files["huge.safetensors"], before = b"huge", len(Hub.requests)
    huge = load_elsewhere("user/name/huge.safetensors", tmp_path, HF_ENDPOINT=hub)
    assert (
        huge.returncode == 1
        and "5.0 GiB" in huge.stderr
        and "Nothing was downloaded" in huge.stderr
    ), huge.stderr
    assert not [path for kind, path in Hub.requests[before:] if kind == "GET" and "huge" in path]
    named = load_elsewhere("user/name/other.safetensors", tmp_path, HF_ENDPOINT=hub)
    assert named.returncode == 1 and "has no file other.safetensors" in named.stderr, named.stderr


def test_peft_in_a_folder_of_a_repository_takes_its_own_settings(hub, tmp_path):
    blora = made()
    weights = blora.save(tmp_path / "peft", "peft").read_bytes()
    config = (tmp_path / "peft" / "adapter_config.json").read_text()
    Hub.files.clear()
    Hub.files.update(
        {
            "adapter_model.safetensors": weights,
            "adapter_config.json": config.replace('"lora_alpha": 4', '"lora_alpha": 400').encode(),
        }
    )
    Hub.files.update(
        {
            f"sub/{name}": data
            for name, data in (
                ("adapter_model.safetensors", weights),
                ("adapter_config.json", config.encode()),
            )
        }
    )
    found = load_elsewhere("user/name/sub/adapter_model.safetensors", tmp_path, HF_ENDPOINT=hub)
    assert (
        found.returncode == 0
        and blora.fingerprint in found.stdout
        and b"400" in Hub.files["adapter_config.json"]
    ), found.stderr
    assert blora.fingerprint not in load_elsewhere("user/name", tmp_path, HF_ENDPOINT=hub).stdout


def test_without_network_or_repository_the_error_says_so(hub, tmp_path):
    for environment, message in (
        ({"HF_HUB_OFFLINE": "1"}, "not in the cache, and the hub cannot be reached"),
        ({"HF_ENDPOINT": hub}, "no such repository"),
        ({"HF_ENDPOINT": "http://127.0.0.1:9"}, "user/missing"),
    ):
        found = load_elsewhere("user/missing", tmp_path, **environment)
        assert (
            found.returncode == 1
            and "There is no file or folder user/missing here" in found.stderr
            and message in found.stderr
            and "Traceback" not in found.stderr
        ), found.stderr
