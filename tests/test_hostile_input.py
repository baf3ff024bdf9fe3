"""Broken and hostile files: each gives a clear error or works.

No crash, no hang, nothing read that the header forbids, nothing half written.
"""

import io
import json
import math
import os
import re
import resource
import struct
import subprocess
import sys
import warnings
import zlib

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save, save_file

from blora_nb.errors import BLoRAError, ImageError
from blora_nb.files.image_folders import find_images
from blora_nb.files.images import read_image
from blora_nb.files.paths import safe_name
from blora_nb.files.safe_files import complete_file, read_json
from blora_nb.files.saved_images import read_settings, save_image
from blora_nb.generation import generate
from blora_nb.lora import BLoRA
from blora_nb.training import train

quick = {
    "deadline": None,
    "database": None,
    "derandomize": True,
    "suppress_health_check": list(HealthCheck),
}


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("hostile")


# --- weights ---


def small():
    """(header, data) of a valid B-LoRA with LoRA, LoHa and LoKr layers, by kohya's names."""
    wide, tall = torch.ones(2, 8), torch.ones(8, 2)
    loha = {"hada_w1_a": tall, "hada_w1_b": wide, "hada_w2_a": tall, "hada_w2_b": wide}
    lokr = {"lokr_w1": torch.ones(2, 2)}
    lokr |= {"lokr_w2_a": torch.ones(4, 1), "lokr_w2_b": torch.ones(1, 4)}
    lora = {"lora_down.weight": wide, "lora_up.weight": tall, "alpha": torch.tensor(2.0)}
    layers = {"attn1_to_v": loha, "attn2_to_q": lokr, "attn1_to_q": lora, "attn2_to_k": lora}
    tensors = {}
    for layer, matrices in layers.items():
        for block in ("output_blocks_0_1", "output_blocks_1_1"):
            stem = f"lora_unet_{block}_transformer_blocks_0_{layer}"
            tensors |= {f"{stem}.{part}": t.clone() for part, t in matrices.items()}
    metadata = {"training": {"instance_prompt": "A [v]"}}
    metadata["lora_adapter_metadata"] = {"unet.r": 2, "unet.lora_alpha": 2}
    data = save(tensors, {name: json.dumps(value) for name, value in metadata.items()})
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


HEADER, DATA = small()
ODD_VALUES = [0, -1, 2**31, 2**63, 2**64 - 1, 1e308, "", "F32", "I8", "F8_E8M0", "F4", "C64"]
ODD_VALUES += ["\x1b[2J", "../../etc/passwd", "{" * 3000]
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.sampled_from(ODD_VALUES),
    st.text(max_size=20),
)


def nested(inner):
    lists = st.lists(inner, max_size=4)
    return lists | st.dictionaries(st.text(max_size=8), inner, max_size=3)


values = st.recursive(scalars, nested, max_leaves=6)
METADATA = ["training", "lora_adapter_metadata", "modelspec.thumbnail", "modelspec.license"]
METADATA += ["lora_alpha", "unet.alpha", "rank", "use_rslora", "lora_config"]
METADATA += ["ss_network_alpha", "ss_network_args"]
TEXTS = [
    "[" * 20000,
    '{"unet.lora_alpha": "x"}',
    '{"unet.lora_alpha": 1e999}',
    "<script>",
    "1e308",
    "nan",
    "-0",
    '{"lora_alpha": {"lora_alpha": [2]}, "r": "\x1b[2J"}',
    "true",
    '{"alpha_pattern": {"": 2}, "rank_pattern": {"(a+)+": "\x1b"}, "lora_alpha": 4}',
]


CHANGES = ["drop", "name", "entry", "dtype", "shape", "offsets", "metadata", "add"]
DAMAGES = ["none", "none", "none", "bytes", "length", "cut"]
texts = st.text(max_size=40) | st.sampled_from(TEXTS)


def changed(draw, header):
    """The header with one change to it as data: an entry, its shape, offsets or name."""
    name = draw(st.sampled_from(sorted(header) or ["x"]))
    match draw(st.sampled_from(CHANGES)):
        case "drop":
            header.pop(name, None)
        case "name":
            odd = st.just(name.replace("_", ".")) | st.just("unet." * 50 + name)
            header[draw(st.text(max_size=60) | odd)] = header.pop(name, None)
        case "entry":
            header[name] = draw(values)
        case "metadata":
            entries = st.dictionaries(st.sampled_from(METADATA), texts)
            header["__metadata__"] = draw(values | entries)
        case "add":
            entry = {"dtype": "F32", "shape": [], "data_offsets": [0, 4]}
            header[draw(st.text(max_size=30))] = entry
        case key:
            if isinstance(header.get(name), dict):
                key = "data_offsets" if key == "offsets" else key
                numbers = st.lists(st.integers(0, 2**40), max_size=5)
                header[name][key] = draw(values | numbers)
    return header


@st.composite
def mutated_headers(draw):
    """A file whose header was changed as data or as bytes."""
    header = json.loads(json.dumps(HEADER))
    for _ in range(draw(st.integers(0, 3))):
        header = changed(draw, header)
    text = json.dumps(header).encode()
    damage = draw(st.sampled_from(DAMAGES))
    if damage == "bytes":
        at = draw(st.integers(0, len(text)))
        text = text[:at] + draw(st.binary(max_size=6)) + text[at + draw(st.integers(0, 6)) :]
    length = len(text)
    if damage == "length":
        length = draw(st.integers(0, 2**64 - 1) | st.integers(0, 3000))
    whole = struct.pack("<Q", length) + text + DATA
    return whole[: draw(st.integers(0, len(whole)))] if damage == "cut" else whole


def usable(blora):
    """What a user does next works with whatever was let in."""
    from blora_nb.files.cards import model_card
    from blora_nb.files.descriptions import describe_as_html, describe_in_full

    assert blora.halves
    assert blora.rank > 0
    assert "<script" not in describe_as_html(blora)
    assert not any(ord(c) < 32 and c != "\n" for c in describe_in_full(blora, "x"))
    assert model_card(blora, "a/b")


def error_of(use, kind):
    """The error of this kind that a use gives, as a text, or None; no warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            use()
        except kind as error:
            return str(error)
    return None


@pytest.mark.slow
def test_mutated_headers(folder):
    """Some are read, most are refused: the changes are neither all harmless nor all fatal."""
    file, errors = folder / "mutated.safetensors", []

    @settings(max_examples=2000, **quick)
    @given(mutated_headers())
    def read(data):
        file.write_bytes(data)
        error = error_of(lambda: usable(BLoRA.load(file)), BLoRAError)
        errors.append(error)
        if error:
            assert error.startswith(str(file))
            assert len(error) < 1500
            assert error.isprintable()

    read()
    assert len(errors) >= 2000
    assert 15 < errors.count(None) < len(errors) / 2


def refused(tmp_path, data, message):
    (tmp_path / "x.safetensors").write_bytes(data)
    with pytest.raises(BLoRAError, match=message):
        BLoRA.load(tmp_path / "x.safetensors")


def with_header(header, data=b""):
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def test_what_is_no_safetensors_file_is_said(tmp_path):
    refused(tmp_path, b"", "it is empty")
    refused(tmp_path, b"PK\x03\x04" + bytes(100), "can run code when they are opened")
    refused(tmp_path, b"\x80\x02}q\x00X\x01\x00\x00", "can run code when they are opened")
    refused(tmp_path, b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull")
    refused(tmp_path, b"<!DOCTYPE html><html>", "web page")
    refused(
        tmp_path,
        struct.pack("<Q", 2**63) + b"{}",
        "its header would have 9,223,372,036,854,775,808 bytes",
    )
    refused(tmp_path, with_header({}), "no weight in it")


NAME = "lora_unet_output_blocks_0_1_proj_in"


LOAD_AND_MEASURE = """
import resource, sys
from blora_nb.lora import BLoRA
from blora_nb.errors import BLoRAError

def peak_mib():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

before = peak_mib()
for path in sys.argv[1:]:
    try:
        BLoRA.load(path)
    except BLoRAError as error:
        print(error)
print(peak_mib() - before)
"""


@pytest.mark.slow
def test_a_huge_header_and_huge_shapes_take_no_memory(tmp_path):
    """Sparse files that claim gigabytes; in a process whose peak memory is measured."""
    bomb = tmp_path / "header.safetensors"
    with open(bomb, "wb") as file:
        file.write(struct.pack("<Q", 3 * 2**30))
        file.truncate(3 * 2**30 + 100)
    # 4.3 GiB, sparse on the disk
    rank = 350_000
    shapes = tmp_path / "shapes.safetensors"
    entries, end = {}, 0
    for part, shape in (("down", [rank, 2048]), ("up", [1280, rank])):
        offsets = [end, end + 4 * shape[0] * shape[1]]
        entry = {"dtype": "F32", "shape": shape, "data_offsets": offsets}
        entries[f"{NAME}.lora_{part}.weight"], end = entry, offsets[1]
    header = with_header(entries)
    with open(shapes, "wb") as file:
        file.write(header)
        file.truncate(len(header) + end)
    command = [sys.executable, "-c", LOAD_AND_MEASURE, bomb, shapes]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    of_bomb, of_shapes, grown = done.stdout.splitlines()
    assert "its header would have 3,221,225,472 bytes" in of_bomb
    assert "would take 4 GiB of memory" in of_shapes or "Cannot allocate" in of_shapes
    assert int(grown) < 200


FORMATS_OF_BITS = {
    4: ["F4"],
    6: ["F6_E2M3", "F6_E3M2"],
    8: ["BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ"],
    16: ["I16", "U16", "F16", "BF16"],
    32: ["I32", "U32", "F32"],
    64: ["C64", "F64", "I64", "U64"],
}
BITS = {name: bits for bits, names in FORMATS_OF_BITS.items() for name in names}
READ = {"F16", "BF16", "F32", "F64", "F8_E4M3"}
REFUSED = {"BOOL", "C64", "F4", "U64", "F8_E8M0"}


@pytest.mark.parametrize("part", ["lora_down.weight", "alpha"])
@pytest.mark.parametrize("dtype", BITS)
def test_every_number_format_is_read_or_refused(tmp_path, part, dtype):
    header, data = {}, b""
    shapes = {"lora_down.weight": [8, 8], "lora_up.weight": [8, 8], "alpha": [1]}
    for name, shape in shapes.items():
        kind = dtype if name == part else "F32"
        length = max(1, math.prod(shape) * BITS[kind] // 8)
        offsets = [len(data), len(data) + length]
        header[f"{NAME}.{name}"] = {"dtype": kind, "shape": shape, "data_offsets": offsets}
        data += b"\x01\x3c" * (length // 2) + b"\x01" * (length % 2)
    file = tmp_path / "x.safetensors"
    file.write_bytes(with_header(header, data))
    error = error_of(lambda: BLoRA.load(file), BLoRAError)
    if dtype in READ:
        assert error is None
    if dtype in REFUSED:
        assert error


@pytest.mark.parametrize(
    ("change", "size"),
    [({"shape": [2**40, 2**40]}, 64), ({"data_offsets": [0, 2**50]}, 64), ({}, 63)],
    ids=["shape", "offsets", "data"],
)
def test_offsets_that_lie_are_refused(tmp_path, change, size):
    entry = {"dtype": "F32", "shape": [2, 8], "data_offsets": [0, 64]} | change
    file = with_header({f"{NAME}.lora_down.weight": entry}, bytes(size))
    refused(tmp_path, file, "not a complete safetensors")


def test_names_cannot_write_to_the_terminal(tmp_path):
    entry = {"dtype": "F32", "shape": [], "data_offsets": [0, 4]}
    file = with_header({"\x1b[2J\x07" + "x" * 10**6: entry}, bytes(4))
    refused(tmp_path, file, r"the first is \?\[2J\?x{50,120}…?\)")


def test_metadata_cannot_write_to_the_page(tmp_path):
    metadata = {"modelspec.trigger_phrase": "<script>alert(1)</script>\x1b[2J"}
    metadata["modelspec.thumbnail"] = 'x" onerror="alert(1)'
    file = with_header(HEADER | {"__metadata__": metadata}, DATA)
    (tmp_path / "x.safetensors").write_bytes(file)
    page = BLoRA.load(tmp_path / "x.safetensors")._repr_html_()
    assert "<script" not in page
    assert "onerror" not in page
    assert "\x1b" not in page
    assert "&lt;script" in page


def test_special_files_are_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.safetensors")
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(BLoRAError, match="no file"):
        BLoRA.load(tmp_path / "pipe.safetensors")
    with pytest.raises(ImageError, match="no ordinary file"):
        read_image(tmp_path / "pipe.png")


@pytest.mark.parametrize("source", ["a\0b.safetensors", "x" * 5000], ids=["NUL", "long"])
def test_names_that_no_file_has_are_refused(source):
    with pytest.raises(BLoRAError):
        BLoRA.load(source)
    with pytest.raises(ImageError):
        read_image(source)


# --- pictures ---


def encoded(format, mode="RGB", **options):
    data = io.BytesIO()
    Image.effect_noise((24, 16), 80).convert(mode).save(data, format=format, **options)
    return data.getvalue()


TURNED = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
PICTURES = [
    encoded("PNG"),
    encoded("PNG", "P"),
    encoded("PNG", "RGBA"),
    encoded("JPEG", exif=TURNED),
    encoded("GIF", "P"),
    encoded("WEBP"),
    encoded("BMP"),
    encoded("TIFF"),
    encoded("TIFF", "CMYK", compression="tiff_lzw"),
]


@st.composite
def mutated_images(draw):
    data = bytearray(draw(st.sampled_from(PICTURES)))
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, len(data) - 1) | st.integers(0, min(60, len(data) - 1)))
        data[at : at + draw(st.integers(0, 4))] = draw(
            st.binary(min_size=1, max_size=6) | st.just(b"\xff\xff\xff\xff")
        )
    return bytes(data[: draw(st.just(len(data)) | st.integers(0, len(data)))])


@pytest.mark.slow
def test_mutated_images(folder):
    """Some are read, some are refused: the changes are neither all harmless nor all fatal."""
    file, errors = folder / "mutated.png", []

    def read_whole():
        image = read_image(file)
        assert image.mode == "RGB"
        assert image.width * image.height < 200_000_000

    @settings(max_examples=700, **quick)
    @given(mutated_images())
    def read(data):
        file.write_bytes(data)
        errors.append(error_of(read_whole, ImageError))
        for error in (errors[-1], error_of(lambda: read_settings(file), ImageError)):
            assert error is None or ("mutated.png" in error and len(error) < 1000)

    read()
    assert len(errors) >= 500
    assert 20 < errors.count(None) < len(errors) - 20


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


# below and above Pillow's own limit
@pytest.mark.parametrize("side", [13_000, 60_000])
def test_decompression_bombs_are_refused_before_decoding(tmp_path, side):
    size = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    data = chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + data)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    error = error_of(lambda: read_image(tmp_path / "bomb.png"), ImageError)
    assert re.search("bomb.png.*Save a smaller copy", error)
    # KiB
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000


def test_bombs_in_the_text_of_a_picture_are_refused(tmp_path):
    text = chunk(b"zTXt", b"blora_nb\0\0" + zlib.compress(bytes(200 * 2**20)))
    png = encoded("PNG")
    (tmp_path / "text.png").write_bytes(png[:33] + text + png[33:])
    with pytest.raises(ImageError, match="text.png"):
        read_settings(tmp_path / "text.png")


def test_colours_of_a_press_and_deep_greys_are_read(tmp_path):
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "print.jpg")
    r, g, b = read_image(tmp_path / "print.jpg").getpixel((4, 4))
    assert r > 240
    assert g < 15
    assert b < 15
    Image.new("I;16", (8, 8), 32896).save(tmp_path / "deep.png")
    assert read_image(tmp_path / "deep.png").getpixel((4, 4)) == (128, 128, 128)


def test_a_program_in_disguise_is_no_picture(tmp_path):
    # Pillow would start Ghostscript
    (tmp_path / "x.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n")
    with pytest.raises(ImageError, match="x.png"):
        read_image(tmp_path / "x.png")


@pytest.mark.skipif(
    os.name != "posix" or os.geteuid() != 0,
    reason="needs root, to become somebody who may not read",
)
def test_unreadable_folders_and_files_are_named(tmp_path):
    closed = tmp_path / "closed"
    closed.mkdir()
    (closed / "a.png").write_bytes(PICTURES[0])
    (closed / "a.safetensors").write_bytes(b"")
    closed.chmod(0)
    pid = os.fork()
    if pid == 0:
        os.setuid(65534)
        refusals = 0
        for call, error in (
            (lambda: find_images(closed), ImageError),
            (lambda: read_image(closed / "a.png"), ImageError),
            (lambda: BLoRA.load(closed / "a.safetensors"), BLoRAError),
            (lambda: BLoRA.load(closed), BLoRAError),
        ):
            try:
                call()
            except error as caught:
                refusals += "closed" in str(caught)
        os._exit(refusals)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 4


TRAPS = ["../../etc/passwd", "CON", "aux.txt", "a\0b", "..", ".hidden", "C:\\x", "name."]
TRAPS += ["\u202egnp.exe", "é" * 300]


@pytest.mark.parametrize("prompt", TRAPS)
def test_file_names_that_are_traps(tmp_path, prompt):
    name = safe_name(prompt)
    path = save_image(Image.new("RGB", (2, 2)), tmp_path / f"{name}.png")
    assert path.parent == tmp_path
    assert path.exists()
    assert not name.startswith(".")
    assert not set(name) & set('<>:"/\\|?*\0')
    assert len(name.encode()) <= 130
    assert name.split(".")[0].lower() not in ("con", "aux")


def no_space(*arguments, **options):
    raise OSError("No space left on device")


def test_no_half_written_picture_remains(tmp_path, monkeypatch):
    picture = Image.new("RGB", (2, 2))
    monkeypatch.setattr(picture, "save", no_space)
    with pytest.raises(OSError, match="No space"):
        save_image(picture, tmp_path / "a.png")
    assert list(tmp_path.iterdir()) == []


def test_no_half_written_weights_remain(tmp_path):
    (tmp_path / "x.safetensors").write_bytes(with_header(HEADER, DATA))
    blora = BLoRA.load(tmp_path / "x.safetensors")
    # the header takes only text
    blora.metadata["number"] = 3
    with pytest.raises(TypeError):
        blora.save(tmp_path / "b.safetensors")
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]


def test_a_file_that_is_there_is_not_written_over(tmp_path):
    (tmp_path / "x.png").write_text("theirs")
    with pytest.raises(FileExistsError):
        save_image(Image.new("RGB", (2, 2)), tmp_path / "x.png")
    assert (tmp_path / "x.png").read_text(encoding="utf-8") == "theirs"


def test_a_file_that_appears_meanwhile_is_not_written_over(tmp_path):
    def write():
        with complete_file(tmp_path / "c.png") as part:
            part.write_text("ours")
            (tmp_path / "c.png").write_text("theirs")

    with pytest.raises(FileExistsError, match="another program"):
        write()
    assert (tmp_path / "c.png").read_text(encoding="utf-8") == "theirs"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_folder_that_is_a_file_cannot_be_written_to_and_that_is_said(tmp_path):
    (tmp_path / "file").touch()
    writing = complete_file(tmp_path / "file" / "x.png")
    with pytest.raises(OSError, match="cannot be written .*name another place"), writing:
        pass


def test_a_file_that_is_written_anew_is_as_others_may_read_it(tmp_path):
    """Not as safetensors writes one, for its owner alone."""
    (tmp_path / "plain").touch()
    file = tmp_path / "x.safetensors"
    for number in (1, 2):
        with complete_file(file, replace=True) as part:
            save_file({"a": torch.full((2,), number)}, part)
    assert load_file(file)["a"].tolist() == [2, 2]
    assert file.stat().st_mode == (tmp_path / "plain").stat().st_mode
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_json_in_any_unicode_encoding_is_read(tmp_path, encoding):
    """PowerShell writes UTF-16."""
    path = tmp_path / "adapter_config.json"
    path.write_bytes('{"r": 4}'.encode(encoding))
    assert read_json(path) == {"r": 4}


@pytest.mark.parametrize("no_pipeline", [None, "tiny"])
def test_what_is_no_pipeline_is_named(no_pipeline):
    with pytest.raises(TypeError, match=r"load_pipeline\(\) returns it, not a"):
        train(no_pipeline, Image.new("RGB", (2, 2)))
    with pytest.raises(TypeError, match=r"load_pipeline\(\) returns it, not a"):
        generate(no_pipeline, "A cat")
