"""Train one B-LoRA for each picture of data/examples, with the default settings, into data/bloras.

python data/train_examples.py     # a few minutes on two cores; what is there already is left alone
"""

from blora_nb import load_pipeline
from blora_nb.examples import example_blora, example_names

if __name__ == "__main__":
    pipe = load_pipeline("tiny")
    for name in example_names():
        print(name, flush=True)
        example_blora(pipe, name)
