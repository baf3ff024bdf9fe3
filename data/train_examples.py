"""Train one B-LoRA for each picture of data/examples, with the default settings, into data/bloras.

    python data/train_examples.py     # a few minutes on two cores; what is there already is left alone
"""

from pathlib import Path

from blora_nb import load_pipeline, train

HERE = Path(__file__).resolve().parent

if __name__ == "__main__":
    pipe = load_pipeline()
    for picture in sorted((HERE / "examples").glob("*.png")):
        file = HERE / "bloras" / f"{picture.stem}.safetensors"
        if not file.exists():
            print(picture.name)
            train(pipe, picture).save(file)
