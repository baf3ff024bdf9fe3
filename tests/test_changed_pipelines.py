"""Pipelines that somebody has changed: each works, or is refused with the call that undoes it."""

import functools

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0

from blora_nb.errors import PipelineError, PipelineWarning
from blora_nb.generation import generate, sample
from blora_nb.guards.changed_pipelines import inner, unwrapped
from blora_nb.inspection import prompt_per_block, record_attention
from blora_nb.lora import BLoRA, applied, apply, remove
from blora_nb.pipeline import use_scheduler
from blora_nb.running.records import record
from blora_nb.training import train
from conftest import ROOT

BLORAS = ROOT / "blora_nb" / "data" / "bloras"
PROMPT = "A [c] in [s] style"
NAMES = ("star_sunset", "flower_neon", "cat_wood")
STAR, NEON, WOOD = (BLoRA.load(BLORAS / f"{name}.safetensors") for name in NAMES)
HOUSE = {"mid_block.attentions.0": "A house"}


def draw(pipe, **options):
    options = {"num_inference_steps": 3, "progress": False} | options
    return generate(pipe, PROMPT, **options)[0]


def learn(pipe, picture, **options):
    options = {"max_train_steps": 3, "train_batch_size": 1, "rank": 4, "progress": False} | options
    return train(pipe, picture, **options)


@pytest.fixture(scope="module")
def learned(pipe, picture):
    """What `learn` makes with a pipeline that nobody has changed."""
    return learn(pipe, picture)


def same_weights(one, two):
    return one.state_dict.keys() == two.state_dict.keys() and all(
        torch.allclose(t, two.state_dict[name], atol=1e-6) for name, t in one.state_dict.items()
    )


def looked(pipe):
    with record_attention(pipe, PROMPT, blocks=["up_blocks.0.attentions.0"]) as attention:
        draw(pipe, content=STAR, style=NEON)
    return attention.cross_attention["up_blocks.0.attentions.0"]


def fuse_projections(pipe):
    pipe.fuse_qkv_projections()


def fuse_star_and_neon(pipe):
    apply(pipe, STAR, NEON)
    pipe.fuse_lora(adapter_names=["content", "style"])


def load_by_other_means(pipe, name="mine"):
    pipe.load_lora_weights(WOOD_FILE, adapter_name=name)


def fuse_another(pipe):
    load_by_other_means(pipe)
    pipe.fuse_lora(lora_scale=0.5)


WOOD_FILE = str(BLORAS / "cat_wood.safetensors")
UNDONE = {  # change, words of the refusal, the call that it names
    "qkv": (fuse_projections, "fuse_qkv", "pipe.unet.unfuse_qkv_projections()"),
    "ours fused": (fuse_star_and_neon, "content, style is fused", "pipe.unfuse_lora()"),
    "another fused": (fuse_another, "mine is fused", "pipe.unfuse_lora()"),
}


@pytest.mark.parametrize("kind", UNDONE)
@pytest.mark.slow
def test_what_spoils_everything_is_refused_until_it_is_undone(pipe, fresh, picture, learned, kind):
    change, words, call = UNDONE[kind]
    halves = {"content": STAR, "style": WOOD, "style_alpha": 0.3}
    right, plain, weights = draw(pipe, **halves), draw(pipe), looked(pipe)
    change(fresh)
    uses = [
        lambda: draw(fresh),
        lambda: draw(fresh, **halves),
        lambda: learn(fresh, picture),
        lambda: sample(fresh, PROMPT, num_inference_steps=1, progress=False),
        lambda: looked(fresh),
        lambda: apply(fresh, STAR, NEON, 0.3),
        lambda: prompt_per_block(fresh, {}).__enter__(),
    ]
    for use in uses:
        with pytest.raises(PipelineError, match=words) as refused:
            use()
        assert str(refused.value).endswith(call)
    exec(call, {"pipe": fresh})
    assert close(draw(fresh, **halves), right)
    assert close(draw(fresh), plain)
    assert torch.allclose(looked(fresh), weights, atol=1e-4)
    assert learn(fresh, picture).losses == pytest.approx(learned.losses, rel=1e-3)


def close(one, two, most=1.0):
    first, second = (torch.tensor(list(image.tobytes())).float() for image in (one, two))
    return (first - second).abs().mean() < most


def test_removing_also_takes_out_what_is_fused(pipe, fresh):
    plain = draw(pipe)
    fuse_star_and_neon(fresh)
    remove(fresh)
    assert applied(fresh) == []
    assert close(draw(fresh), plain, 0.01)


def compile_whole(pipe):
    pipe.unet = torch.compile(pipe.unet, backend="eager")


def compile_in_place(pipe):
    pipe.unet.compile(backend="eager")


def compile_forward(pipe):
    pipe.unet.forward = torch.compile(pipe.unet.forward, backend="eager")


def compile_blocks(pipe):
    pipe.unet.compile_repeated_blocks(backend="eager")


def compile_a_part(pipe):
    pipe.unet.up_blocks[0] = torch.compile(pipe.unet.up_blocks[0], backend="eager")


WRAPPED = {
    "compiled": compile_whole,
    "compiled in place": compile_in_place,
    "compiled forward": compile_forward,
    "compiled blocks": compile_blocks,
    "a compiled part": compile_a_part,
    "other attention": lambda pipe: pipe.unet.set_attn_processor(AttnProcessor()),
    "sliced attention": lambda pipe: pipe.enable_attention_slicing(1),
}


SEQUENCE = [
    {},
    {"content": STAR, "style": NEON},
    {"content": STAR, "content_alpha": 0.3},
    {"style": WOOD},
    {},
]


@pytest.fixture(scope="module")
def plainly(pipe):
    """What a pipeline that nobody has changed draws: a sequence, attention, a block's prompt."""
    drawn, attention = [draw(pipe, **options) for options in SEQUENCE], looked(pipe)
    with prompt_per_block(pipe, HOUSE):
        return drawn, attention, draw(pipe)


@pytest.mark.parametrize("kind", WRAPPED)
@pytest.mark.slow
def test_wrapped_and_compiled_models_give_the_same(
    fresh, picture, plainly, learned, tmp_path, kind
):
    drawn, attention, house = plainly
    WRAPPED[kind](fresh)
    before = fresh.unet, fresh.text_encoder
    for options, image in zip(SEQUENCE, drawn):
        assert close(draw(fresh, **options), image, 0.1)
    again = learn(fresh, picture, output_dir=tmp_path / "out", checkpointing_steps=2)
    assert again.losses == pytest.approx(learned.losses, rel=1e-3)
    # AdamW's first steps enlarge the rounding of another attention
    if "attention" not in kind:
        assert same_weights(again, learned)
    assert same_weights(BLoRA.load(again.save(tmp_path / "file")), again)
    names = BLoRA.load(tmp_path / "out" / "checkpoint-2").state_dict
    assert not any("_orig_mod" in name for name in names)
    assert torch.allclose(looked(fresh), attention, atol=1e-4)
    with prompt_per_block(fresh, HOUSE):
        assert close(draw(fresh), house, 0.1)
    # it is as its owner has made it
    assert (fresh.unet, fresh.text_encoder) == before
    call = getattr(inner(fresh.unet), "_compiled_call_impl", None)
    assert (call is not None) == (kind == "compiled in place")


def test_a_compiled_layer_keeps_its_lora(pipe, fresh):
    block = fresh.unet.up_blocks[0].attentions[0].transformer_blocks[0].attn1
    block.to_q = torch.compile(block.to_q, backend="eager")
    assert close(draw(fresh, content=STAR), draw(pipe, content=STAR), 0.01)


@pytest.mark.parametrize("name", ["mine", "content"])
def test_loras_of_others_are_taken_off_and_named(pipe, fresh, name):
    right, plain = draw(pipe, content=STAR), draw(pipe)
    for options, same in (({"content": STAR}, right), ({}, plain)):
        load_by_other_means(fresh, name)
        fresh.set_adapters([name], [0.7])
        (theirs,) = sample(fresh, PROMPT, num_inference_steps=1, progress=False)
        told = {"other_lora": ["mine"]} if name == "mine" else {"content_alpha": 0.7}
        assert theirs.info["blora_nb"].items() >= told.items()
        with pytest.warns(PipelineWarning, match=f"LoRA {name}, .* is taken off"):
            image = draw(fresh, **options)
        assert image.tobytes() == same.tobytes()
        remove(fresh)


def test_a_training_takes_off_loras_of_others(fresh, picture, learned):
    load_by_other_means(fresh)
    with pytest.warns(PipelineWarning, match="mine"):
        assert same_weights(learn(fresh, picture), learned)


def test_a_lora_on_a_text_encoder_is_taken_off(pipe, fresh):
    from peft import LoraConfig

    right = draw(pipe, content=STAR)
    apply(fresh, content=STAR)
    config = LoraConfig(r=4, init_lora_weights=False, target_modules=["q_proj", "v_proj"])
    fresh.text_encoder.add_adapter(config, adapter_name="words")
    with pytest.warns(PipelineWarning, match="LoRA words"):
        assert draw(fresh, content=STAR).tobytes() == right.tobytes()


def test_weights_that_were_exchanged_in_place_are_put_right(pipe, fresh, tmp_path):
    """diffusers' hotswap keeps the adapter's name and configuration."""
    right = draw(pipe, content=STAR)
    apply(fresh, content=STAR)
    file = WOOD.content.save(tmp_path)
    fresh.load_lora_weights(str(file), adapter_name="content", hotswap=True)
    with pytest.warns(PipelineWarning, match="LoRA content"):
        image = draw(fresh, content=STAR)
    assert image.tobytes() == right.tobytes()
    apply(fresh, content=STAR)
    with torch.no_grad():
        next(p for n, p in fresh.unet.named_parameters() if "lora_B" in n).mul_(2)
    assert record(fresh, PROMPT, None, STAR)["content_fingerprint"] is None
    with pytest.warns(PipelineWarning):
        assert draw(fresh, content=STAR).tobytes() == right.tobytes()


def fuse_and_unfuse(pipe):
    pipe.fuse_lora(lora_scale=0.4)
    pipe.unfuse_lora()


SWITCHES = {
    "all off": lambda pipe: pipe.disable_lora(),
    "one, weaker": lambda pipe: pipe.set_adapters(["content"], [0.2]),
    "one deleted": lambda pipe: pipe.delete_adapters(["style"]),
    "unloaded": lambda pipe: pipe.unload_lora_weights(),
    "fused for a while": fuse_and_unfuse,
}


@pytest.mark.parametrize("switch", SWITCHES)
def test_switches_of_diffusers_are_set_again(pipe, fresh, switch):
    right = draw(pipe, content=STAR, style=NEON)
    apply(fresh, STAR, NEON)
    SWITCHES[switch](fresh)
    assert close(draw(fresh, content=STAR, style=NEON), right, 0.05)


def test_freeu_is_for_drawing_and_in_the_record(pipe, fresh, picture, learned):
    fresh.enable_freeu(s1=0.6, s2=0.4, b1=1.1, b2=1.2)
    image = draw(fresh, content=STAR)
    assert image.info["blora_nb"]["freeu"] == {"s1": 0.6, "s2": 0.4, "b1": 1.1, "b2": 1.2}
    assert "freeu" not in draw(pipe, content=STAR).info["blora_nb"]
    with pytest.raises(PipelineError, match="disable_freeu"):
        learn(fresh, picture)
    fresh.disable_freeu()
    assert same_weights(learn(fresh, picture), learned)


class Inverted(AttnProcessor2_0):
    def __call__(self, *args, **kwargs):
        return -super().__call__(*args, **kwargs)


def test_attention_of_somebody_elses_is_in_the_record_and_not_trained_on(fresh, picture, learned):
    fresh.unet.set_attn_processor(Inverted())
    assert draw(fresh).info["blora_nb"]["attention_processors"] == ["Inverted"]
    for use in (lambda: learn(fresh, picture), lambda: looked(fresh)):
        with pytest.raises(PipelineError, match="computed by Inverted.*set_attn_processor"):
            use()
    fresh.unet.set_attn_processor(AttnProcessor2_0())
    assert same_weights(learn(fresh, picture), learned)


def test_a_lora_that_has_become_part_of_the_base_is_in_the_records(fresh, picture):
    fuse_another(fresh)
    fresh.unload_lora_weights()
    assert draw(fresh).info["blora_nb"]["fused_lora"] == ["mine"]
    assert '"mine"' in learn(fresh, picture).metadata["changes_of_the_base"]


def test_an_ip_adapter_is_refused(fresh, picture):
    fresh.unet.config["encoder_hid_dim_type"] = "ip_image_proj"  # what load_ip_adapter sets
    fresh.unet.register_to_config(encoder_hid_dim_type="ip_image_proj")
    for use in (lambda: draw(fresh), lambda: learn(fresh, picture)):
        with pytest.raises(PipelineError, match="unload_ip_adapter"):
            use()


def test_a_peft_model_is_refused(pipe, fresh, picture):
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=4, init_lora_weights=False, target_modules=["to_q"])
    fresh.unet = get_peft_model(fresh.unet, config)
    for use in (lambda: draw(fresh), lambda: learn(fresh, picture), lambda: looked(fresh)):
        with pytest.raises(PipelineError, match=r"pipe.unet = pipe.unet.unload\(\)"):
            use()
    fresh.unet = fresh.unet.unload()
    assert draw(fresh).tobytes() == draw(pipe).tobytes()


def offload_models(pipe):
    """As on a GPU, where diffusers turns it off and on again round each LoRA."""
    again = functools.partial(pipe.enable_model_cpu_offload, device="cpu")
    again()
    pipe.enable_model_cpu_offload = again


class Kept(torch.nn.Module):
    """A wrapper whose inside has a name of its own."""

    def __init__(self, unet):
        super().__init__()
        self.wrapped, self.extra = unet, torch.nn.Identity()


def test_what_is_no_unet_is_refused(fresh, picture):
    unet = fresh.unet
    fresh.unet = Kept(unet)
    for use in (lambda: draw(fresh), lambda: learn(fresh, picture), lambda: looked(fresh)):
        with pytest.raises(PipelineError, match="in the U-Net's place is a Kept"):
            use()


@pytest.mark.parametrize("name", ["unet", "vae", "text_encoder_2"])
def test_models_in_data_parallel_are_refused(pipe, fresh, picture, name):
    setattr(fresh, name, torch.nn.DataParallel(getattr(fresh, name)))
    if name == "unet":
        compile_whole(fresh)
    call = f"pipe.{name} = pipe.{name}.module"
    uses = [
        lambda: draw(fresh, content=STAR),
        lambda: sample(fresh, PROMPT, progress=False),
        lambda: learn(fresh, picture),
        lambda: looked(fresh),
        lambda: apply(fresh, STAR),
    ]
    for use in uses:
        with pytest.raises(PipelineError, match=f"its {name} is inside DataParallel") as refused:
            use()
        assert str(refused.value).endswith(call)
    exec(call, {"pipe": fresh})
    assert draw(fresh, content=STAR).tobytes() == draw(pipe, content=STAR).tobytes()


OFFLOADED = {
    "models": offload_models,
    "sequential": lambda pipe: pipe.enable_sequential_cpu_offload(device="cpu"),
    "groups": lambda pipe: pipe.unet.enable_group_offload(
        onload_device=torch.device("cpu"), offload_type="leaf_level"
    ),
}


@pytest.mark.parametrize("kind", OFFLOADED)
@pytest.mark.slow
def test_offloaded_models_draw_and_are_not_trained(pipe, fresh, picture, learned, kind):
    OFFLOADED[kind](fresh)
    sequence = ({}, {"content": STAR, "style": NEON}, {"style": WOOD})
    # accelerate cannot draw sequentially on a CPU
    if kind != "sequential":
        for options in sequence:
            image = draw(fresh, **options)
            assert image.tobytes() == draw(pipe, **options).tobytes()
            assert image.info["blora_nb"]["device"] == "cpu"
    remedy = "load the pipeline again" if kind == "groups" else "remove_all_hooks"
    with pytest.raises(PipelineError, match=remedy):
        learn(fresh, picture)
    if kind != "groups":
        fresh.remove_all_hooks()
        fresh.to("cpu")
        assert same_weights(learn(fresh, picture), learned)


def test_a_sampler_that_was_put_in_anothers_place_is_not_recorded(fresh):
    from diffusers import DDIMScheduler

    use_scheduler(fresh, "dpm++")
    assert draw(fresh).info["blora_nb"]["scheduler"] == "dpm++"
    fresh.scheduler = DDIMScheduler.from_config(fresh.scheduler.config)
    assert draw(fresh).info["blora_nb"]["scheduler"] is None


def test_unwrapping_is_undone_after_an_error(fresh):
    fresh.unet = wrapper = torch.compile(fresh.unet, backend="eager")

    def fail_inside():
        with unwrapped(fresh):
            assert fresh.unet is wrapper._orig_mod
            raise KeyError

    with pytest.raises(KeyError):
        fail_inside()
    assert fresh.unet is wrapper
