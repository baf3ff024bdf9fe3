"""What a file says about itself: metadata, description, model card; and the hub.

The hub is one of our own, without network.
"""

import base64
import hashlib
import http.server
import io
import json
import os
import re
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from blora_nb.assets import TINY_SDXL
from blora_nb.files.cards import model_card, upload
from blora_nb.files.descriptions import describe_in_full, facts, norms
from blora_nb.files.locating import FILE_NAME
from blora_nb.files.metadata import model_hash, training_metadata
from blora_nb.lora import BLoRA
from blora_nb.pipeline import load_pipeline
from blora_nb.registry import note_options
from blora_nb.settings import TrainingSettings
from helpers import refused, run, succeeded
from report import fingerprint
from test_formats import made, mixed_rank


@pytest.fixture
def described(pipe, picture):
    """A B-LoRA with all that a training can say about itself."""
    settings = TrainingSettings(instance_prompt="A [v] | fish", rank=4, license="cc-by-4.0")
    return BLoRA(made().state_dict, training_metadata(pipe, settings, picture))


def mean_grey(image):
    return image.convert("L").resize((1, 1)).getpixel((0, 0))


@pytest.mark.parametrize("format", ["diffusers", "sgm", "peft"])
def test_metadata_of_a_training_is_in_the_file(picture, described, tmp_path, format):
    found = BLoRA.load(described.save(tmp_path / format, format)).metadata
    assert json.loads(found["training"])["rank"] == 4
    assert found["modelspec.trigger_phrase"] == "A [v] | fish"
    assert found["modelspec.license"] == "cc-by-4.0"
    assert found["base_model"] == "tiny_sdxl"
    assert found["base_model_sha256"].startswith(fingerprint())
    assert json.loads(found["versions"])["torch"] == torch.__version__
    data = base64.b64decode(found["modelspec.thumbnail"].split(",")[1])
    thumbnail = Image.open(io.BytesIO(data))
    assert thumbnail.size == (128, 128)
    assert abs(mean_grey(thumbnail) - mean_grey(picture)) < 8


def test_metadata_tell_pictures_apart(pipe, picture, described):
    other = picture.copy()
    other.putpixel((0, 0), (1, 2, 3))
    found = training_metadata(pipe, TrainingSettings(), other)
    assert found["picture_sha256"] != described.metadata["picture_sha256"]
    assert "picture_sha256" not in training_metadata(pipe, TrainingSettings())


@pytest.mark.parametrize("base", ['x"); import os; ("/', "a/b\n---\nevil", "user/model/more"])
def test_a_files_words_do_not_become_code_in_a_card(base):
    card = model_card(BLoRA(made().state_dict, {"base_model": base}), "u/n")
    code = card.split("```python")[1].split("```")[0]
    assert 'load_pipeline("tiny")' in code
    assert "import os" not in code
    assert "evil" not in code


def test_a_license_is_written_as_the_hub_writes_it():
    card = model_card(BLoRA(made().state_dict, {"modelspec.license": "MIT"}), "u/n")
    assert "license: mit" in card


def test_the_hubs_cache_names_the_base_by_its_hash(tmp_path):
    blob = tmp_path / "blobs" / ("ab" * 32)
    blob.parent.mkdir()
    blob.write_bytes(b"not read")
    folder = tmp_path / "snapshot" / "unet"
    folder.mkdir(parents=True)
    (folder / "diffusion_pytorch_model.fp16.safetensors").symlink_to(blob)
    unet = SimpleNamespace(config={"_name_or_path": str(folder)})
    pipe = SimpleNamespace(unet=unet, config={"_name_or_path": "user/model"})
    assert model_hash(pipe) == ("user/model", "ab" * 32)


def test_of_several_variants_the_loaded_one_is_named(tmp_path):
    """In the base's own folder, as diffusers writes them; one of them in two pieces."""
    pipe = load_pipeline(device="cpu")
    pipe.unet.register_to_config(_name_or_path=str(tmp_path))
    found = {}
    for ending in ("", ".fp16", ".non_ema-00001-of-00002", ".non_ema-00002-of-00002"):
        file = tmp_path / f"diffusion_pytorch_model{ending}.safetensors"
        file.write_bytes(ending.encode())
        found[ending] = hashlib.sha256(ending.encode()).hexdigest()
    assert model_hash(pipe)[1] == found[""]
    note_options(pipe, variant="fp16")
    assert model_hash(pipe)[1] == found[".fp16"]
    note_options(pipe, variant="non_ema")
    pieces = "".join(found[f".non_ema-0000{i}-of-00002"] for i in (1, 2))
    assert model_hash(pipe)[1] == hashlib.sha256(pieces.encode()).hexdigest()


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


def card_data(blora):
    """The header of a model card, as the hub reads it."""
    from huggingface_hub import ModelCard

    return ModelCard(model_card(blora, "user/fish")).data


def test_a_model_card_has_the_header_the_hub_reads(described):
    data = card_data(described)
    assert data.license == "cc-by-4.0"
    assert "lora" in data.tags
    assert data.get("instance_prompt") == "A [v] | fish"
    assert ("licence", "cc-by-4.0") in facts(described, norms(described))


def test_a_model_card_names_sdxl_but_no_base_that_the_hub_does_not_know():
    sdxl = made(width=1280, context=2048, depth=1, rank=lambda layer: 1)
    assert card_data(sdxl).base_model == "stabilityai/stable-diffusion-xl-base-1.0"
    assert card_data(BLoRA(sdxl.state_dict, {"base_model": "my_own_sdxl"})).base_model is None


def test_a_license_of_ones_own_is_the_other_one_with_a_name(described):
    """The hub refuses a card whose license it does not know."""
    own = BLoRA(described.state_dict, described.metadata | {"modelspec.license": "My School Only"})
    assert card_data(own).license == "other"
    assert card_data(own).license_name == "my_school_only"


# --- a hub of our own: enough of the Hugging Face hub's interface for one repository ---

COMMIT = "c" * 40


class Hub(http.server.BaseHTTPRequestHandler):
    files, requests = {}, []

    def answer(self, code, body=b"", **headers):
        self.send_response(code)
        headers = {"Content_Length": len(body), "Content_Type": "application/json"} | headers
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def answer_json(self, data):
        self.answer(200, json.dumps(data).encode())

    def answer_file(self, name):
        data = self.files.get(name)
        if data is None:
            self.answer(404, X_Error_Code="EntryNotFound")
            return
        headers = {"ETag": f'"{hashlib.md5(data).hexdigest()}"', "X_Repo_Commit": COMMIT}
        if data == b"huge":
            headers |= {"X_Linked_Size": 5 * 2**30, "X_Linked_ETag": '"2"'}
        self.answer(200, data, **headers)

    def do_GET(self):
        self.requests.append((self.command, self.path))
        path = self.path.split("?")[0]
        file = re.fullmatch("/user/name/resolve/(?:main|c{40})/(.+)", path)
        if file:
            self.answer_file(file[1])
        elif re.fullmatch("/api/models/user/name(/revision/(main|c{40}))?", path):
            siblings = [{"rfilename": name} for name in self.files]
            self.answer_json({"id": "user/name", "sha": COMMIT, "siblings": siblings})
        elif path.startswith("/api/models/user/name/tree/"):
            entry = {"type": "file", "oid": "0" * 40}
            sizes = {name: len(data) for name, data in self.files.items()}
            self.answer_json([entry | {"path": n, "size": size} for n, size in sizes.items()])
        else:
            self.answer(404, X_Error_Code="RepoNotFound")

    do_HEAD = do_GET

    def do_POST(self):
        self.requests.append((self.command, self.path))
        data = self.rfile.read(int(self.headers["Content-Length"]))
        repository = f"http://{self.headers['Host']}/user/name"
        if "/preupload/" in self.path:
            rest = {"uploadMode": "regular", "shouldIgnore": False, "oid": None}
            files = [{"path": file["path"]} | rest for file in json.loads(data)["files"]]
            self.answer_json({"files": files})
        elif "/commit/" in self.path:
            for line in map(json.loads, data.splitlines()):
                if line["key"] == "file":
                    self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            address = f"{repository}/commit/{COMMIT}"
            self.answer_json({"success": True, "commitOid": COMMIT, "commitUrl": address})
        else:
            self.answer_json({"url": repository, "name": "user/name"})

    def log_message(self, *_):
        pass


@pytest.fixture
def hub():
    Hub.files, Hub.requests = {}, []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.fixture
def elsewhere(tmp_path):
    """Environment variables of a computer that has a hub cache of its own."""
    return {"HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}


def inspected(source, environment):
    """`inspect` in a process of its own: the hub's address and cache are read at its start."""
    return run("inspect", source, env={**os.environ, **environment})


@pytest.mark.slow
def test_upload_then_load_by_id(described, hub, elsewhere, tmp_path):
    source = described.source
    assert upload(described, "user/name", token="hf_x", endpoint=hub).endswith(COMMIT)
    assert described.source == source, "not a temporary folder that is gone"
    assert set(Hub.files) >= {FILE_NAME, "README.md"}
    assert b"A [v] | fish" in Hub.files["README.md"]
    (tmp_path / "x.safetensors").write_bytes(Hub.files[FILE_NAME])
    assert BLoRA.load(tmp_path / "x.safetensors").fingerprint == described.fingerprint
    with pytest.raises(FileExistsError, match=f"user/name has a {FILE_NAME} already"):
        upload(described, "user/name", token="hf_x", endpoint=hub)
    found = succeeded(inspected("user/name", elsewhere | {"HF_ENDPOINT": hub}))
    assert described.fingerprint in found.stdout
    # out of the cache
    again = succeeded(inspected("user/name", elsewhere | {"HF_HUB_OFFLINE": "1"}))
    assert described.fingerprint in again.stdout


def test_a_model_card_of_ones_own_is_not_written_over(described, hub):
    Hub.files["README.md"] = b"written by hand"
    with pytest.raises(FileExistsError, match=r"user/name has a README.md already"):
        upload(described, "user/name", token="hf_x", endpoint=hub)
    assert Hub.files == {"README.md": b"written by hand"}


QUANTIZED = """
from diffusers.quantizers.bitsandbytes import BnB4BitDiffusersQuantizer as Quantizer
from blora_nb.files.metadata import model_hash
from blora_nb.pipeline import load_pipeline
Quantizer.validate_environment = lambda self, *args, **kwargs: None  # it asks for a GPU
Quantizer.update_device_map = lambda self, device_map: {"": "cpu"}
print(*model_hash(load_pipeline("user/name", device="cpu", quantization="nf4")))
"""


@pytest.mark.slow
def test_a_base_of_the_hub_in_4_bits_has_the_hash_of_its_file(hub, elsewhere):
    files = [path for path in TINY_SDXL.rglob("*") if path.is_file()]
    Hub.files |= {path.relative_to(TINY_SDXL).as_posix(): path.read_bytes() for path in files}
    environment = os.environ | elsewhere | {"HF_ENDPOINT": hub}
    command = [sys.executable, "-c", QUANTIZED]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"user/name {fingerprint()}")


@pytest.mark.slow
def test_a_huge_file_is_not_downloaded(hub, elsewhere):
    Hub.files["huge.safetensors"] = b"huge"
    huge = inspected("user/name/huge.safetensors", elsewhere | {"HF_ENDPOINT": hub})
    refused(huge, "5.0 GiB", "Nothing was downloaded")
    assert not [path for kind, path in Hub.requests if kind == "GET" and "huge" in path]


@pytest.mark.slow
def test_a_file_that_a_repository_does_not_have_is_named(hub, elsewhere):
    Hub.files[FILE_NAME] = b"not read"
    named = inspected("user/name/other.safetensors", elsewhere | {"HF_ENDPOINT": hub})
    refused(named, "has no file other.safetensors")


@pytest.mark.slow
def test_peft_in_a_folder_of_a_repository_takes_its_own_settings(hub, elsewhere, tmp_path):
    blora = made()
    weights = blora.save(tmp_path / "peft", "peft").read_bytes()
    config = (tmp_path / "peft" / "adapter_config.json").read_text(encoding="utf-8")
    other = config.replace('"lora_alpha": 4', '"lora_alpha": 400')
    assert other != config
    Hub.files |= {
        "adapter_model.safetensors": weights,
        "adapter_config.json": other.encode(),
        "sub/adapter_model.safetensors": weights,
        "sub/adapter_config.json": config.encode(),
    }
    environment = elsewhere | {"HF_ENDPOINT": hub}
    found = succeeded(inspected("user/name/sub/adapter_model.safetensors", environment))
    assert blora.fingerprint in found.stdout
    assert blora.fingerprint not in inspected("user/name", environment).stdout
    # of the other folder only the weights are in the cache
    for file in (tmp_path / "home").rglob("adapter_config.json"):
        file.unlink()
    alone = inspected("user/name/adapter_model.safetensors", elsewhere | {"HF_HUB_OFFLINE": "1"})
    refused(alone, "the adapter_config.json beside it is not")


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"HF_HUB_OFFLINE": "1"}, "not in the cache, and the hub cannot be reached"),
        ({"HF_ENDPOINT": "the hub"}, "no such repository"),
        ({"HF_ENDPOINT": "http://127.0.0.1:9"}, "user/missing"),
    ],
)
@pytest.mark.slow
def test_without_network_or_repository_the_error_says_so(hub, elsewhere, environment, message):
    environment = {name: value.replace("the hub", hub) for name, value in environment.items()}
    found = inspected("user/missing", elsewhere | environment)
    refused(found, "There is no file or folder user/missing here", message)
