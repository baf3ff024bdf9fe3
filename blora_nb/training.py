"""Train a B-LoRA: the pieces (attach, draw, loss, optimizer) and the loop that uses them.

Source: arXiv 2403.14572, section 4.2, and the authors' training script. Each piece is a function of its own, so that
recorded latents, noise, timesteps and LoRA weights of another implementation can be replayed through `blora_loss` and
`make_optimizer` and compared number by number. What keeps a long training alive is in `watch` and `checkpoints`, what makes it
fit into a small GPU in `memory`, `execution` and `text_cache`, what makes it fast in `lean_attention` and `lean_lora`, what changes the loss in `recipes`.
"""

from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
import hashlib
import json
from pathlib import Path
import warnings

from safetensors import SafetensorError
import torch
import torch.nn.functional as F

from . import checkpoints
from .adapters import FILE_NAME, BLoRA, applied, apply, combine, mix, remove
from .batches import Batches
from .blocks import STYLE_BLOCK, target_modules
from .cards import training_metadata, versions
from .configuration import TrainingSettings
from .execution import all_back, compiled, gradient_checkpointing, offloaded
from .images import centre_square, find_images, free_path, read_image, to_tensor
from .lean_attention import lean_attention
from .lean_lora import lean_lora
from .memory import choose_checkpointing, explain_out_of_memory, forget, free_memory, is_out_of_memory, room_again, unet_can_stay
from .models import native_resolution, options_of
from .recipes import sample_weights
from .sharing import pipeline_lock
from .text_cache import cached_text
from .watch import Report, TrainingError, Watch, stop_at_the_end_of_a_step

ADAPTER = "new"
__all__ = ["ADAPTER", "TrainingError", "TrainingSettings", "attach_lora", "blora_loss", "collect", "draw_step", "encode_image", "make_optimizer", "micro_conditioning", "run_steps", "train"]


def attach_lora(unet, rank, seed=0, blocks=()):
    """Put fresh LoRA layers on the two B-LoRA blocks (or those in the list `blocks`) and return their parameters, always float32.

    lora_A [rank, in] is drawn from a normal distribution of standard deviation 1/rank, lora_B [out, rank] is zero, and lora_alpha = rank makes the scale 1:
    the training starts from the unchanged model.
    """
    from diffusers.training_utils import cast_training_params
    from peft import LoraConfig

    with torch.random.fork_rng(range(torch.cuda.device_count())):  # without the list it warns where there are several
        torch.manual_seed(seed)
        unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=target_modules(*blocks)), adapter_name=ADAPTER)
    cast_training_params(unet, torch.float32)
    return [p for p in unet.parameters() if p.requires_grad]


def attach_style_beside(pipe, content, settings):
    """Put a known content half on the model, frozen, and fresh LoRA on the style block only; returns the latter's parameters.

    The second step of ConsisLoRA's style training (arXiv 2503.10614): what the content half explains already, the style half need not learn.
    """
    apply(pipe, content=content)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Already found a `peft_config`")  # two adapters are what we want
        attach_lora(pipe.unet, settings.rank, settings.seed, [STYLE_BLOCK])
    pipe.unet.set_adapters(["content", ADAPTER])
    for name, parameter in pipe.unet.named_parameters():
        parameter.requires_grad_(f".{ADAPTER}." in name)
    return [p for p in pipe.unet.parameters() if p.requires_grad]


def make_optimizer(parameters, settings):
    """AdamW with the original's betas .9 and .999, eps 1e-8; on a GPU in one fused kernel, elsewhere in a loop over all tensors at once, which gives the bits of a plain one."""
    kind, fast = torch.optim.AdamW, {"fused": True} if parameters[0].is_cuda else {"foreach": True}
    if settings.use_8bit_adam:
        try:
            from bitsandbytes.optim import AdamW8bit as kind
        except ImportError:
            raise TrainingError("8-bit Adam needs the package bitsandbytes: pip install bitsandbytes") from None
        fast = {}
    return kind(parameters, lr=settings.learning_rate, betas=(settings.adam_beta1, settings.adam_beta2), weight_decay=settings.adam_weight_decay, eps=settings.adam_epsilon, **fast)


@contextmanager
def exact_vae(vae):
    """Inside, a VAE computes in float32 and in one piece; tiles would be encoded a little differently."""
    dtype, tiled = vae.dtype, getattr(vae, "use_tiling", False)
    torch.nn.Module.to(vae, torch.float32)  # diffusers' own warns
    vae.use_tiling = False
    try:
        yield
    finally:
        torch.nn.Module.to(vae, dtype)
        vae.use_tiling = tiled


@torch.no_grad()
def encode_image(pipe, image, resolution):
    """Mean and standard deviation of a picture's latents, float32 [1, channels, resolution/8, resolution/8] each.

    The VAE runs once, computing in float32 as in the original (with its weights as they were loaded). The training draws a new sample from mean and
    std at every step, as the original does by encoding the picture again each time.
    """
    pixels = to_tensor(centre_square(image, resolution)).to(pipe.vae.device)
    with exact_vae(pipe.vae):
        posterior = pipe.vae.encode(pixels).latent_dist
    return posterior.mean.float(), posterior.std.float()


def draw_step(moments, scheduler, scaling_factor, batch_size, generator):
    """What one step draws, in the original's order: latents, noise [batch, channels, h, w], timesteps [batch]."""
    mean, std = moments
    shape = (batch_size, *mean.shape[1:])
    normal = lambda: without_waiting(torch.randn(shape, generator=generator), mean.device)
    latents = (mean + std * normal()) * scaling_factor
    noise = normal()
    timesteps = without_waiting(torch.randint(0, scheduler.config.num_train_timesteps, (batch_size,), generator=generator), mean.device)
    return latents, noise, timesteps


def without_waiting(tensor, device):
    """A tensor of the computer's memory on a device. From pinned memory a GPU fetches it when it gets there; otherwise the computer would wait until the GPU has caught up."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def micro_conditioning(resolution, batch_size, device, dtype):
    """SDXL's `time_ids` [batch, 6]: original size, crop offset, target size, the same as at inference."""
    return torch.tensor([[resolution, resolution, 0, 0, resolution, resolution]] * batch_size, device=device, dtype=dtype)


def diffusion_target(scheduler, latents, noise, timesteps):
    """What the U-Net has to predict: the noise (SDXL), or the velocity (the teaching model)."""
    if scheduler.config.prediction_type == "v_prediction":
        return scheduler.get_velocity(latents, noise, timesteps)
    return noise


def blora_loss(unet, scheduler, latents, noise, timesteps, prompt_embeds, pooled_prompt_embeds, time_ids, weights=None):
    """The mean squared error of the U-Net's prediction, a scalar in float32. Embeddings of one prompt serve the batch.

    Args:
        weights: of each sample's error, [batch]; None for all the same.
    """
    batch = latents.shape[0]
    prediction = unet(
        scheduler.add_noise(latents, noise, timesteps).to(unet.conv_in.weight.dtype),  # `unet.dtype` looks through all modules, at every step
        timesteps,
        prompt_embeds.expand(batch, -1, -1),
        added_cond_kwargs={"text_embeds": pooled_prompt_embeds.expand(batch, -1), "time_ids": time_ids},
    ).sample
    target = diffusion_target(scheduler, latents, noise, timesteps).float()
    if weights is None:
        return F.mse_loss(prediction.float(), target)
    return (F.mse_loss(prediction.float(), target, reduction="none").mean(dim=(1, 2, 3)) * weights).mean()


def collect(unet, settings):
    """The `BLoRA` made of the LoRA weights on a U-Net, with the settings and versions in its metadata."""
    from peft.utils import get_peft_model_state_dict

    weights = get_peft_model_state_dict(unet, adapter_name=ADAPTER)
    metadata = {"training": json.dumps(asdict(settings)), "versions": versions()}
    return BLoRA({f"unet.{key}": t.detach().float().cpu().clone() for key, t in weights.items()}, metadata)


def named(unet):
    """The LoRA's tensors by their names in a `BLoRA`."""
    return {f"unet.{name.replace(f'.{ADAPTER}.', '.')}": p for name, p in unet.named_parameters() if p.requires_grad}


def start_state(pipe, parameters, settings, learned=None, content=None):
    """The `TrainingState` before the first step; see `run_steps`."""
    from diffusers.optimization import get_scheduler

    optimizer = make_optimizer(parameters, settings)
    lr_scheduler = get_scheduler(
        settings.lr_scheduler, optimizer, num_warmup_steps=settings.lr_warmup_steps, num_training_steps=settings.max_train_steps,
        num_cycles=settings.lr_num_cycles, power=settings.lr_power,
    )  # fmt: skip
    # in float16 the gradients of the activations are too small for the format; scaled up they survive
    scaler = torch.amp.GradScaler(pipe.unet.device.type, enabled=pipe.unet.dtype == torch.float16)
    generator = torch.Generator().manual_seed(settings.seed)
    return checkpoints.TrainingState(named(pipe.unet), optimizer, lr_scheduler, scaler, generator, [], learned, content and content.fingerprint)


def take_step(pipe, scheduler, batches, time_ids, state, settings, step):
    """One step: draw, loss, gradient, optimizer. Returns loss and gradient norm, scalars that are still on the device."""
    total, parameters, accumulate = 0, list(state.parameters.values()), settings.gradient_accumulation_steps
    for part in range(accumulate):
        *moments, prompt_embeds, pooled = batches.batch((step - 1) * accumulate + part)
        latents, noise, timesteps = draw_step(moments, scheduler, pipe.vae.config.scaling_factor, len(time_ids), state.generator)
        weights = sample_weights(settings, scheduler, timesteps, step)
        loss = blora_loss(pipe.unet, scheduler, latents, noise, timesteps, prompt_embeds, pooled, time_ids, weights) / accumulate
        state.scaler.scale(loss).backward()
        total = total + loss.detach()
    state.scaler.unscale_(state.optimizer)
    norm = torch.nn.utils.clip_grad_norm_(parameters, settings.max_grad_norm)
    state.scaler.step(state.optimizer)
    state.scaler.update()
    state.lr_scheduler.step()
    state.optimizer.zero_grad()
    return total, norm


def run_steps(pipe, parameters, moments, settings, progress=True, prompts=None, prior=None, output_dir=None, resume_from_checkpoint=None, on_checkpoint=None, content=None, learned=None):
    """The training loop: `settings.max_train_steps` steps on the latents of one picture, or of several. Returns the loss of each step.

    Args:
        parameters: from `attach_lora`. moments: from `encode_image`; those of several pictures concatenated.
        progress: True for a progress bar with the loss, or a function called with (step, steps, loss).
        prompts: one for each picture; by default `settings.instance_prompt` for all.
        prior: moments of class pictures, for prior preservation.
        output_dir, resume_from_checkpoint, on_checkpoint, content: see `train`.
        learned: from `what_is_learned`; a checkpoint of anything else is not gone on from.
    """
    from diffusers import DDPMScheduler

    steps, size = settings.max_train_steps, settings.train_batch_size
    class_batches = prior and Batches(pipe, prior, [settings.class_prompt], size, settings.seed + 1)
    batches = Batches(pipe, moments, prompts or [settings.instance_prompt], size, settings.seed, class_batches)
    time_ids = micro_conditioning(settings.resolution, 2 * size if prior else size, pipe.device, batches.prompt_embeds.dtype)
    scheduler = DDPMScheduler.from_config(pipe.scheduler.config)
    state = start_state(pipe, parameters, settings, learned, content)
    if resume_from_checkpoint:
        checkpoints.resume(resume_from_checkpoint, state, settings)

    with ExitStack() as stack:
        models_back = stack.enter_context(offloaded(pipe.vae, pipe.text_encoder, pipe.text_encoder_2))
        text_back = stack.enter_context(cached_text(pipe.unet, batches.prompt_embeds[:1].expand(size, -1, -1), batches.one_prompt))
        stack.enter_context(gradient_checkpointing(pipe.unet, choose_checkpointing(pipe, settings, free_memory(pipe.unet.device))))
        stack.enter_context(lean_attention(pipe.unet))
        pefts_own = stack.enter_context(lean_lora(pipe.unet))
        stack.enter_context(compiled(pipe.unet, settings.compile))
        stack.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", "Detected call of `lr_scheduler")  # in float16 the first steps may be left out while the scale adapts
        stop = stack.enter_context(stop_at_the_end_of_a_step())
        report = stack.enter_context(Report(Watch(parameters, state.losses, settings.learning_rate, state.scaler.is_enabled()), steps, progress))
        stack.enter_context(room_again())

        def checkpoint():
            report.look()
            path = write_checkpoint(pipe.unet, state, settings, output_dir)
            if path and not stop.asked:
                show(path)
            return path

        def show(path):
            if not on_checkpoint:
                return
            try:
                with models_back(), text_back(), pefts_own():
                    on_checkpoint(pipe, path)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                forget(error)
                warnings.warn(f"There was no room for what is made at checkpoints ({str(error).splitlines()[0]}). {path} is complete, and the training goes on.", stacklevel=2)
            if ADAPTER not in applied(pipe):
                raise TrainingError(f"The function called at checkpoints took the B-LoRA in training off the pipeline. Let it draw with generation.sample instead of generate. {path} is complete.")

        try:
            if resume_from_checkpoint:
                show(resume_from_checkpoint)  # what was made there may have been interrupted
            for step in range(state.step + 1, steps + 1):
                if step == settings.x0_loss_from:
                    report.look()
                report.watch.judged = settings.x0_loss_from is None or step < settings.x0_loss_from
                known = report.watch.saw(*take_step(pipe, scheduler, batches, time_ids, state, settings, step))
                path = checkpoint() if output_dir and (settings.checkpoint_at(step) or stop.asked) else None
                report.tell(known)
                if stop.asked:
                    raise KeyboardInterrupt(f"Stopped after step {step}." + (f" Go on with: --resume_from_checkpoint latest (in {output_dir})" if path else ""))
            report.look()
        except TrainingError as error:
            if error.step is not None:
                keep_last_good(error, pipe.unet, settings, output_dir)
            raise
    return state.losses


def write_checkpoint(unet, state, settings, output_dir):
    """A checkpoint's path; None where the disk is full, with a warning: hours of work go on, and the end may find room again."""
    try:
        return checkpoints.write_checkpoint(output_dir, collect(unet, settings), state, settings, settings.checkpoints_total_limit)
    except checkpoints.CheckpointError as error:
        warnings.warn(f"{error} The training goes on without it; make room in the folder.", stacklevel=3)
        return None


def keep_last_good(error, unet, settings, output_dir):
    """Hang the last good weights, which are on the U-Net again, on the error, and write them where there is a folder."""
    if error.step == 0:
        error.args = (f"{error} Nothing had been learned yet.",)
        return
    error.blora = collect(unet, settings)
    if output_dir:
        try:
            where = f"They are in {error.blora.save(free_path(output_dir, f'last_good-{error.step}', '.safetensors'))}."
        except (OSError, SafetensorError) as trouble:
            where = f"They could not be written to {output_dir} ({trouble}); from Python they are the error's `blora`."
        error.args = (f"{error} {where}",)


def prepare_output(output_dir, resume_from_checkpoint):
    """The checkpoint to go on from, or None. Raises FileExistsError where a new training would mix with an old one."""
    if output_dir is None:
        return None
    if (Path(output_dir) / FILE_NAME).exists():
        raise FileExistsError(f"{Path(output_dir) / FILE_NAME} exists already. Choose another --output_dir, or remove it first.")
    if resume_from_checkpoint:
        return checkpoints.find_checkpoint(output_dir, resume_from_checkpoint)
    if checkpoints.checkpoints(output_dir):
        raise FileExistsError(f"{output_dir} holds the checkpoints of a training that did not end. Go on with --resume_from_checkpoint latest, or choose another folder.")
    return None


def train(pipe, image, settings=None, progress=True, output_dir=None, resume_from_checkpoint=None, on_checkpoint=None, content=None, **changes):
    """Train one B-LoRA from one picture, or one from several.

    Args:
        pipe: from `load_pipeline`. Any LoRA on it is taken off; afterwards it is the plain model again.
        image: a path or PIL image of any size, of which the middle square is used; or a list of them; or a dict of
            paths to the prompt of each.
        settings: a `TrainingSettings`; by default those that suit the pipeline, with `changes` made to them
            (`rank=8`, `max_train_steps=300`, …).
        progress: True for a progress bar with the loss, or a function called with (step, steps, loss).
        output_dir: folder for checkpoints; without it there are none. The B-LoRA itself is yours to save.
        resume_from_checkpoint: "latest" or a checkpoint's name: go on from there, on a CPU bit for bit.
        on_checkpoint: called with (pipe, folder) after each checkpoint, and again for the one that is gone on from, the unfinished
            B-LoRA being on the pipeline; it draws with `generation.sample` (`generate` would take that off).
        content: a B-LoRA of the same picture, or its file, whose content half is kept as it is: only a fresh style half is
            trained beside it (the two-step style training of ConsisLoRA, arXiv 2503.10614).

    Returns:
        A `BLoRA`; its `losses` lists the loss of each step.

    Raises:
        ImageError: the picture cannot be read. ValueError: a setting or argument makes no sense. TrainingError: the loss or gradient is no longer a number, or memory is
        short. CheckpointError: the one to go on from is broken or belongs to another training. KeyboardInterrupt: after
        Ctrl-C, at the end of the step and with a checkpoint written where there is an `output_dir`.
    """
    settings = replace(settings, **changes) if settings else TrainingSettings.for_pipeline(pipe, **changes)
    if output_dir is None and (resume_from_checkpoint or on_checkpoint):
        raise ValueError("Checkpoints are in a folder: resume_from_checkpoint and on_checkpoint need an output_dir.")
    if not native_resolution(pipe) / 2 <= settings.resolution <= 2 * native_resolution(pipe):
        warnings.warn(f"The base model draws {native_resolution(pipe)} px and resolution is {settings.resolution}. TrainingSettings.for_pipeline(pipe, …) has the values that suit it.", stacklevel=2)
    prompts = list(image.values()) if isinstance(image, dict) else None
    pictures = list(image) if isinstance(image, (list, tuple, dict)) else [image]
    checkpoint = prepare_output(output_dir, resume_from_checkpoint)
    content = content and mix("content", content)
    moving = [pipe.vae, pipe.text_encoder, pipe.text_encoder_2, *([] if getattr(pipe.unet, "is_quantized", False) else [pipe.unet])]
    with pipeline_lock(pipe), all_back(*moving):
        try:
            squares, class_squares = squares_of(pictures, settings), squares_of(find_images(settings.class_data_dir), settings) if settings.with_prior_preservation else []
            metadata = training_metadata(pipe, settings, pictures[0] if len(pictures) == 1 else None)
            learned = what_is_learned(pipe, metadata, squares, prompts, class_squares)
            with offloaded(*([] if unet_can_stay(pipe, settings) else [pipe.unet]), pipe.text_encoder, pipe.text_encoder_2), room_again():
                moments = encode_images(pipe, squares)
                prior = encode_images(pipe, class_squares) if class_squares else None
            del squares, class_squares
            remove(pipe)
            # no name here for LoRA's parameters: it would keep them on the device when the models come back
            attach = lambda: attach_style_beside(pipe, content, settings) if content else attach_lora(pipe.unet, settings.rank, settings.seed)
            losses = run_steps(pipe, attach(), moments, settings, progress, prompts, prior, output_dir, checkpoint, on_checkpoint, content, learned)
            blora = collect(pipe.unet, settings)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            forget(error)
            raise TrainingError(explain_out_of_memory(pipe, settings, error, next(reversed(checkpoints.checkpoints(output_dir)), None) if output_dir else None)) from None
        finally:
            remove(pipe)
    metadata = blora.metadata | metadata
    if content:
        blora, metadata["content_kept"] = combine(content, blora), content.fingerprint
    blora.metadata, blora.losses = metadata, losses
    return blora


def squares_of(pictures, settings):
    """What is learned of the pictures: their middle squares, PIL images of `settings.resolution` pixels."""
    return [centre_square(read_image(picture), settings.resolution) for picture in pictures]


def encode_images(pipe, squares):
    """`encode_image` of several square pictures of one size: mean and standard deviation, [pictures, channels, h, w] each."""
    return tuple(torch.cat(part) for part in zip(*(encode_image(pipe, square, square.width) for square in squares)))


def what_is_learned(pipe, metadata, squares, prompts=None, class_squares=()):
    """What a checkpoint belongs to: hashes of the pixels, the prompts and the base model, and the dtype that is computed in."""
    digest = lambda parts: hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()
    others = [p.detach().cpu().float().numpy().tobytes() for model in (pipe.vae, pipe.text_encoder, pipe.text_encoder_2) for p in model.parameters() if p.ndim == 1]  # enough to tell two apart
    return {
        "dtype": f"{str(pipe.unet.dtype).removeprefix('torch.')} {options_of(pipe).get('quantization', 'none')}",
        "picture": digest(square.tobytes() for square in squares), "caption": digest([json.dumps(prompts).encode()]), "set of class pictures": digest(square.tobytes() for square in class_squares),
        "base model": digest([str(metadata.get("base_model_sha256") or metadata["base_model"]).encode(), *others]),
    }  # fmt: skip
