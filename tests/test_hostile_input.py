"""Broken and hostile files: each gives a clear error or works; no crash, no hang, nothing read that the header forbids, nothing half written."""

import io
import json
import os
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
from safetensors.torch import save

from blora_nb.errors import BLoRAError, ImageError
from blora_nb.files.image_folders import find_images
from blora_nb.files.images import read_image
from blora_nb.files.paths import safe_name
from blora_nb.files.safe_files import complete_file
from blora_nb.files.saved_images import read_settings, save_image
from blora_nb.lora import BLoRA

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
    """The bytes of a valid B-LoRA with LoRA, LoHa and LoKr layers, kohya's names with alphas among them, as (header, data)."""
    tensors = {}
    loha = {
        f"hada_w{i}_{side}": torch.ones(shape)
        for i in (1, 2)
        for side, shape in (("a", (8, 2)), ("b", (2, 8)))
    }
    lokr = {
        "lokr_w1": torch.ones(2, 2),
        "lokr_w2_a": torch.ones(4, 1),
        "lokr_w2_b": torch.ones(1, 4),
    }
    for layer, matrices in (("0_attn1_to_v", loha), ("0_attn2_to_q", lokr)):
        for block in ("output_blocks_0_1", "output_blocks_1_1"):
            tensors |= {
                f"lora_unet_{block}_transformer_blocks_{layer}.{part}": t.clone()
                for part, t in matrices.items()
            }
    for layer in ("0_attn1_to_q", "0_attn2_to_k"):
        for block in ("output_blocks_0_1", "output_blocks_1_1"):
            stem = f"lora_unet_{block}_transformer_blocks_{layer}"
            tensors |= {
                f"{stem}.lora_down.weight": torch.ones(2, 8),
                f"{stem}.lora_up.weight": torch.ones(8, 2),
                f"{stem}.alpha": torch.tensor(2.0),
            }
    data = save(
        tensors,
        {
            "training": json.dumps({"instance_prompt": "A [v]"}),
            "lora_adapter_metadata": json.dumps({"unet.r": 2, "unet.lora_alpha": 2}),
        },
    )
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


HEADER, DATA = small()
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.sampled_from(
        [
            0,
            -1,
            2**31,
            2**63,
            2**64 - 1,
            1e308,
            "",
            "F32",
            "I8",
            "F8_E8M0",
            "F4",
            "C64",
            "\x1b[2J",
            "../../etc/passwd",
            "{" * 3000,
        ]
    ),
    st.text(max_size=20),
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=6,
)

METADATA = [
    "training",
    "lora_adapter_metadata",
    "modelspec.thumbnail",
    "modelspec.license",
    "lora_alpha",
    "unet.alpha",
    "rank",
    "use_rslora",
    "lora_config",
    "ss_network_alpha",
    "ss_network_args",
]
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


@st.composite
def mutated_headers(draw):
    """A file whose header was changed as data (entries, shapes, offsets, names) or as bytes."""
    header = json.loads(json.dumps(HEADER))
    for _ in range(draw(st.integers(0, 3))):
        name = draw(st.sampled_from(sorted(header) or ["x"]))
        match draw(
            st.sampled_from(
                ["drop", "name", "entry", "dtype", "shape", "offsets", "metadata", "add"]
            )
        ):
            case "drop":
                header.pop(name, None)
            case "name":
                header[
                    draw(
                        st.text(max_size=60)
                        | st.just(name.replace("_", "."))
                        | st.just("unet." * 50 + name)
                    )
                ] = header.pop(name, None)
            case "entry":
                header[name] = draw(values)
            case "metadata":
                header["__metadata__"] = draw(
                    values
                    | st.dictionaries(
                        st.sampled_from(METADATA), st.text(max_size=40) | st.sampled_from(TEXTS)
                    )
                )
            case "add":
                header[draw(st.text(max_size=30))] = {
                    "dtype": "F32",
                    "shape": [],
                    "data_offsets": [0, 4],
                }
            case key:
                if isinstance(header.get(name), dict):
                    header[name][{"offsets": "data_offsets"}.get(key, key)] = draw(
                        values | st.lists(st.integers(0, 2**40), max_size=5)
                    )
    text = json.dumps(header).encode()
    damage = draw(st.sampled_from(["none", "none", "none", "bytes", "length", "cut"]))
    if damage == "bytes":
        at = draw(st.integers(0, len(text)))
        text = text[:at] + draw(st.binary(max_size=6)) + text[at + draw(st.integers(0, 6)) :]
    length = (
        draw(st.integers(0, 2**64 - 1) | st.integers(0, 3000)) if damage == "length" else len(text)
    )
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


seen = {"headers": 0, "read": 0, "images": 0, "decoded": 0}


@settings(max_examples=2000, **quick)
@given(mutated_headers())
def test_mutated_headers(folder, data):
    file = folder / "mutated.safetensors"
    file.write_bytes(data)
    seen["headers"] += 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            usable(BLoRA.load(file))
            seen["read"] += 1
        except BLoRAError as error:
            assert str(error).startswith(str(file))
            assert len(str(error)) < 1500
            assert str(error).isprintable()


def test_the_mutations_were_neither_all_harmless_nor_all_fatal():
    if not seen["headers"]:
        pytest.skip("needs test_mutated_headers")
    assert seen["headers"] >= 2000
    assert 15 < seen["read"] < seen["headers"] / 2


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


def test_a_huge_header_and_huge_shapes_take_no_memory(tmp_path):
    """Run in a process of its own whose peak memory is measured: sparse files that claim gigabytes."""
    bomb = tmp_path / "header.safetensors"
    with open(bomb, "wb") as file:
        file.write(struct.pack("<Q", 3 * 2**30))
        file.truncate(3 * 2**30 + 100)
    rank = 350_000  # 4.3 GiB, sparse on the disk
    down, up = 2048 * rank * 4, 1280 * rank * 4
    shapes = tmp_path / "shapes.safetensors"
    header = with_header(
        {
            f"{NAME}.lora_down.weight": {
                "dtype": "F32",
                "shape": [rank, 2048],
                "data_offsets": [0, down],
            },
            f"{NAME}.lora_up.weight": {
                "dtype": "F32",
                "shape": [1280, rank],
                "data_offsets": [down, down + up],
            },
        }
    )
    with open(shapes, "wb") as file:
        file.write(header)
        file.truncate(len(header) + down + up)
    code = (
        "import resource, sys\nfrom blora_nb import BLoRA\nfrom blora_nb.lora import BLoRAError\nbefore = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "for path in sys.argv[1:]:\n try:\n  BLoRA.load(path)\n except BLoRAError as error: print(error)\n"
        "print('grown', (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, bomb, shapes], capture_output=True, text=True, timeout=120
    )
    lines = done.stdout.splitlines()
    assert "its header would have 3,221,225,472 bytes" in lines[0] and (
        "would take 4 GiB of memory" in lines[1] or "Cannot allocate" in lines[1]
    ), done
    assert int(lines[-1].split()[1]) < 200  # MiB


@pytest.mark.parametrize("part", ["lora_down.weight", "alpha"])
def test_every_number_format_is_read_or_refused(tmp_path, part):
    bits = {
        "F4": 4,
        "F6_E2M3": 6,
        "F6_E3M2": 6,
        "BOOL": 8,
        "U8": 8,
        "I8": 8,
        "F8_E5M2": 8,
        "F8_E4M3": 8,
        "F8_E8M0": 8,
        "F8_E4M3FNUZ": 8,
        "I16": 16,
        "U16": 16,
        "F16": 16,
        "BF16": 16,
        "I32": 32,
        "U32": 32,
        "F32": 32,
        "C64": 64,
        "F64": 64,
        "I64": 64,
        "U64": 64,
    }
    read = set()
    for dtype, size in bits.items():
        shapes, header, data = (
            {"lora_down.weight": [8, 8], "lora_up.weight": [8, 8], "alpha": [1]},
            {},
            b"",
        )
        for name, shape in shapes.items():
            kind, width = (dtype, size) if name == part else ("F32", 32)
            length = max(1, (64 if len(shape) == 2 else 1) * width // 8)
            header[f"{NAME}.{name}"] = {
                "dtype": kind,
                "shape": shape,
                "data_offsets": [len(data), len(data) + length],
            }
            data += b"\x01\x3c" * (length // 2) + b"\x01" * (length % 2)
        (tmp_path / "x.safetensors").write_bytes(with_header(header, data))
        try:
            BLoRA.load(tmp_path / "x.safetensors")
            read.add(dtype)
        except BLoRAError:
            pass
    assert {"F16", "BF16", "F32", "F64", "F8_E4M3"} <= read
    assert not read & {
        "BOOL",
        "C64",
        "F4",
        "U64",
        "F8_E8M0",
    }


def test_offsets_that_lie_are_refused(tmp_path):
    entry = {"dtype": "F32", "shape": [2, 8], "data_offsets": [0, 64]}
    refused(
        tmp_path,
        with_header({f"{NAME}.lora_down.weight": {**entry, "shape": [2**40, 2**40]}}, bytes(64)),
        "not a complete safetensors",
    )
    refused(
        tmp_path,
        with_header({f"{NAME}.lora_down.weight": {**entry, "data_offsets": [0, 2**50]}}, bytes(64)),
        "not a complete safetensors",
    )
    refused(
        tmp_path,
        with_header({f"{NAME}.lora_down.weight": entry}, bytes(63)),
        "not a complete safetensors",
    )


def test_names_and_metadata_cannot_write_to_the_terminal_or_the_page(tmp_path):
    refused(
        tmp_path,
        with_header(
            {"\x1b[2J\x07" + "x" * 10**6: {"dtype": "F32", "shape": [], "data_offsets": [0, 4]}},
            bytes(4),
        ),
        r"the first is \?\[2J\?x{50,120}…?\)",
    )
    text = json.dumps(
        HEADER
        | {
            "__metadata__": {
                "modelspec.trigger_phrase": "<script>alert(1)</script>\x1b[2J",
                "modelspec.thumbnail": 'x" onerror="alert(1)',
            }
        }
    ).encode()
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + DATA)
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
    for source in ("a\0b.safetensors", "x" * 5000):
        with pytest.raises(BLoRAError):
            BLoRA.load(source)
        with pytest.raises(ImageError):
            read_image(source)


# --- pictures ---


def encoded(format, mode="RGB", **options):
    data = io.BytesIO()
    Image.effect_noise((24, 16), 80).convert(mode).save(data, format=format, **options)
    return data.getvalue()


PICTURES = [
    encoded("PNG"),
    encoded("PNG", "P"),
    encoded("PNG", "RGBA"),
    encoded(
        "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    ),
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


@settings(max_examples=700, **quick)
@given(mutated_images())
def test_mutated_images(folder, data):
    file = folder / "mutated.png"
    file.write_bytes(data)
    seen["images"] += 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            image = read_image(file)
            assert image.mode == "RGB"
            assert image.width * image.height < 200_000_000
            seen["decoded"] += 1
        except ImageError as error:
            assert "mutated.png" in str(error)
            assert len(str(error)) < 1000
        try:
            read_settings(file)
        except ImageError as error:
            assert "mutated.png" in str(error)


def test_the_images_were_neither_all_harmless_nor_all_fatal():
    if not seen["images"]:
        pytest.skip("needs test_mutated_images")
    assert seen["images"] >= 500
    assert 20 < seen["decoded"] < seen["images"] - 20


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def test_decompression_bombs_are_refused_before_decoding(tmp_path):
    for side in (13_000, 60_000):  # below and above Pillow's own limit
        start = b"\x89PNG\r\n\x1a\n" + chunk(
            b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
        )
        (tmp_path / "bomb.png").write_bytes(
            start + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
        )
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with (
            warnings.catch_warnings(),
            pytest.raises(ImageError, match="bomb.png.*Save a smaller copy"),
        ):
            warnings.simplefilter("ignore")
            read_image(tmp_path / "bomb.png")
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB
    text = chunk(b"zTXt", b"blora_nb\0\0" + zlib.compress(bytes(200 * 2**20)))
    png = encoded("PNG")
    (tmp_path / "text.png").write_bytes(png[:33] + text + png[33:])
    with pytest.raises(ImageError, match="text.png"):
        read_settings(tmp_path / "text.png")


def test_animations_and_odd_colours(tmp_path):
    frames = [Image.new("RGB", (20, 20), colour) for colour in ("red", "blue")]
    for name, options in (("a.gif", {}), ("a.webp", {"lossless": True}), ("a.png", {})):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], **options)
        assert (
            read_image(tmp_path / name).getpixel((5, 5))[0]
            > 250
            > read_image(tmp_path / name).getpixel((5, 5))[2] + 200
        )
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "print.jpg")
    r, g, b = read_image(tmp_path / "print.jpg").getpixel((4, 4))
    assert r > 240
    assert g < 15
    assert b < 15
    Image.new("I;16", (8, 8), 32896).save(tmp_path / "deep.png")
    assert read_image(tmp_path / "deep.png").getpixel((4, 4)) == (128, 128, 128)


def test_a_program_in_disguise_is_no_picture(tmp_path):
    (tmp_path / "x.png").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n"
    )  # Pillow would start Ghostscript
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


def test_file_names_that_are_traps(tmp_path):
    for prompt in (
        "../../etc/passwd",
        "CON",
        "aux.txt",
        "a\0b",
        "..",
        ".hidden",
        "C:\\x",
        "name.",
        "\u202egnp.exe",
        "é" * 300,
    ):
        name = safe_name(prompt)
        path = save_image(Image.new("RGB", (2, 2)), tmp_path / f"{name}.png")
        assert path.parent == tmp_path
        assert path.exists()
        assert not name.startswith(".")
        assert not set(name) & set('<>:"/\\|?*\0')
        assert len(name.encode()) <= 130
        assert name.split(".")[0].lower() not in ("con", "aux")
        path.unlink()


def test_nothing_half_written_remains(tmp_path):
    (tmp_path / "x.safetensors").write_bytes(with_header(HEADER, DATA))
    blora = BLoRA.load(tmp_path / "x.safetensors")
    picture = Image.new("RGB", (2, 2))
    picture.save = lambda *args, **kwargs: (_ for _ in ()).throw(OSError("No space left on device"))
    with pytest.raises(OSError, match="No space"):
        save_image(picture, tmp_path / "a.png")
    blora.metadata["number"] = 3  # the header takes only text
    with pytest.raises(Exception):
        blora.save(tmp_path / "b.safetensors")
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]
    with pytest.raises(FileExistsError):
        save_image(Image.new("RGB", (2, 2)), tmp_path / "x.safetensors")
    with (
        pytest.raises(FileExistsError, match="another program"),
        complete_file(tmp_path / "c.png") as part,
    ):
        part.write_text("ours")
        (tmp_path / "c.png").write_text("theirs")
    assert (tmp_path / "c.png").read_text() == "theirs"
    assert len(list(tmp_path.iterdir())) == 2
