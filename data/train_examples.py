"""Train a B-LoRA for each example picture, with the default settings, into blora_nb/data/bloras.

python data/train_examples.py     # a few minutes on two cores; what is there stays as it is
"""

from blora_nb.course.examples import example_blora, example_names
from blora_nb.pipeline import load_pipeline

if __name__ == "__main__":
    pipe = load_pipeline("tiny")
    for name in example_names():
        print(name, flush=True)
        example_blora(pipe, name)
