"""Pictures of one's own on the teaching model: are they rebuilt, and do they mix?

    python benchmarks/own_pictures.py FOLDER     # about 15 seconds a picture

Trains a B-LoRA of every picture of a folder with the defaults, as the command line does. Then:

- rebuilt: both halves of one picture, compared with it pixel by pixel (`blora_nb.rebuild`).
- mixtures: each picture's content in the next one's style. Among all pictures, is the silhouette
  nearest to the content picture's, and the palette nearest to the style picture's?

No trained judge takes part: a silhouette is what differs from the colour of the border, a palette
is a histogram of colours. Writes outputs/own_pictures.png and prints the rest.
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from blora_nb import generate, load_pipeline, picture_grid, rebuild, train
from blora_nb.defaults import native_resolution
from blora_nb.files.image_folders import find_images
from blora_nb.files.images import centre_square, read_image
from report import OUTPUTS, table

PROMPT = "A [c] in [s] style"
BINS = 6  # of each colour channel


def silhouette(image: Image.Image) -> np.ndarray:
    """How far each pixel is from the colour of the border: [height, width], mean 0 and length 1."""
    pixels = np.asarray(image, np.float64) / 255
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    distance = np.linalg.norm(pixels - np.median(border, axis=0), axis=2)
    distance = distance - distance.mean()
    return distance / max(np.linalg.norm(distance), 1e-9)


def palette(image: Image.Image) -> np.ndarray:
    """The share of the pixels in each of BINS³ boxes of colours, and what spills into the next."""
    place = np.asarray(image, np.float64).reshape(-1, 3) / 255 * (BINS - 1)
    low, counts = np.floor(place).astype(int), np.zeros((BINS, BINS, BINS))
    upper_share = place - low
    for corner in np.ndindex(2, 2, 2):
        share = np.prod(np.where(corner, upper_share, 1 - upper_share), axis=1)
        red, green, blue = np.minimum(low + corner, BINS - 1).T
        np.add.at(counts, (red, green, blue), share)
    return counts / counts.sum()


def nearest_silhouette(image: Image.Image, others: list[Image.Image]) -> int:
    shape = silhouette(image)
    return int(np.argmax([(shape * silhouette(other)).sum() for other in others]))


def nearest_palette(image: Image.Image, others: list[Image.Image]) -> int:
    colours = palette(image)
    return int(np.argmax([np.minimum(colours, palette(other)).sum() for other in others]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--base", default="tiny")
    parser.add_argument("--apart", type=int, default=1, help="content i, style i + APART")
    args = parser.parse_args()
    pipe = load_pipeline(args.base, device="cpu")
    paths = find_images(args.folder)
    side = native_resolution(pipe)
    pictures = [centre_square(read_image(path), side) for path in paths]
    bloras = [train(pipe, picture, progress=False) for picture in tqdm(pictures, desc="B-LoRAs")]
    rebuilt = [rebuild(pipe, b, p) for b, p in zip(bloras, pictures, strict=True)]
    count, mixed, cells, right = len(paths), [], [], []
    for i in tqdm(range(count), desc="mixtures"):
        j = (i + args.apart) % count
        image = generate(pipe, PROMPT, content=bloras[i], style=bloras[j], progress=False)[0]
        mixed.append(image)
        found = nearest_silhouette(image, pictures) == i, nearest_palette(image, pictures) == j
        right.append(found)
        numbers = [f"{rebuilt[i].psnr:.1f}", f"{rebuilt[i].gain:+.1f}"]
        verdicts = ["yes" if verdict else "no" for verdict in found]
        cells.append([paths[i].name, *numbers, paths[j].name, *verdicts])
    columns = ["rebuilt dB", "above one colour", "in the style of", "silhouette", "palette"]
    print(table(columns, cells))
    gains = np.array([r.gain for r in rebuilt])
    shapes_right, palettes_right = np.mean(right, axis=0)
    print(
        f"rebuilt to {np.mean([r.psnr for r in rebuilt]):.1f} dB on average; "
        f"{(gains >= 3).mean():.0%} better than one colour by 3 dB or more\n"
        f"among {count}: silhouette nearest {shapes_right:.2f}, palette nearest "
        f"{palettes_right:.2f}"
    )
    OUTPUTS.mkdir(exist_ok=True)
    styles = [pictures[(i + args.apart) % count] for i in range(count)]
    rows = [pictures, [r.image for r in rebuilt], styles, mixed]
    labels = ["picture", "rebuilt", "style picture", "mixture"]
    picture_grid(rows, labels, side=0.9).savefig(OUTPUTS / "own_pictures.png")


if __name__ == "__main__":
    main()
