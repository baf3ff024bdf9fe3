"""Train one B-LoRA for each picture of data/examples, with the default settings, into data/bloras.

python data/train_examples.py     # a few minutes on two cores; what is there stays as it is
"""

from blora_nb.course.examples import example_blora, example_names
from blora_nb.pipeline import load_pipeline

if __name__ == "__main__":
    pipe = load_pipeline("tiny")
    for name in example_names():
        print(name, flush=True)
        example_blora(pipe, name)
