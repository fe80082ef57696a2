"""Build and pretrain the small arithmetic model that the quickstart trains.

    python tools/make_tiny_model.py --output examples/tiny

writes a Qwen2 checkpoint in Hugging Face format (`model/`), the problems for reinforcement learning
(`train.jsonl`, `heldout.jsonl`) and the measurements (`model_card.json`). The same seed and number of
threads give the same weights on the same kind of machine.

Shapes: B sequences, L tokens per sequence, V vocabulary.
"""

import argparse
import json
import math
import platform
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
import transformers
from torch.optim.lr_scheduler import LambdaLR
from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer

from tiny_corpus import Attempt, Habits, Problem, is_correct, make_splits, student_attempts

NUM_RL_TRAIN = 4000
NUM_HELDOUT = 200
MAX_NEW_TOKENS = 80
MAX_POSITIONS = 512

PAD_ID, EOS_ID = 0, 1
SPECIAL_TOKENS = ("<|pad|>", "<|endoftext|>")
IGNORED_LABEL = -100  # cross_entropy skips it


def build_tokenizer() -> Qwen2Tokenizer:
    """Build a tokenizer with one token per printable ASCII character or newline. It drops other characters.

    It is a byte-level BPE without merges, with `Ġ` for a space and `Ċ` for a newline. For every model of
    type qwen2, AutoTokenizer (transformers 5.19) rebuilds Qwen2's own pre-tokenizer and decoder and ignores
    those in tokenizer.json. So a tokenizer of another kind would not survive loading.
    """
    characters = ["Ċ", "Ġ", *map(chr, range(ord("!"), ord("~") + 1))]
    vocabulary = {token: index for index, token in enumerate([*SPECIAL_TOKENS, *characters])}
    pad_token, eos_token = SPECIAL_TOKENS
    return Qwen2Tokenizer(
        vocab=vocabulary,
        merges=[],
        pad_token=pad_token,
        eos_token=eos_token,
        unk_token=eos_token,  # BPE has none; without this, transformers would add a token
        model_max_length=MAX_POSITIONS,
    )


def build_model(
    vocab_size: int,
    *,
    hidden_size: int = 128,
    num_layers: int = 4,
    num_heads: int = 4,
    num_kv_heads: int = 2,
    max_positions: int = MAX_POSITIONS,
) -> Qwen2ForCausalLM:
    """Build an untrained model, fp32. Its weights come from torch's global generator.

    hidden_size / num_heads must be at least 32, the smallest head of vLLM's CPU attention.
    """
    config = Qwen2Config(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=4 * hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=num_heads,
        num_key_value_heads=num_kv_heads,
        max_position_embeddings=max_positions,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=EOS_ID,
        pad_token_id=PAD_ID,
        dtype="float32",
    )
    model = Qwen2ForCausalLM(config).float()
    model.generation_config = GenerationConfig(eos_token_id=EOS_ID, pad_token_id=PAD_ID)
    return model


def encode_corpus(tokenizer: Qwen2Tokenizer, attempts: list[Attempt]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return tokens and labels, both int64 [B, L], right-padded. Labels cover only the completion and its eos."""
    prompts = tokenizer([problem.prompt for problem, _ in attempts])["input_ids"]
    completions = tokenizer([completion for _, completion in attempts])["input_ids"]
    rows = [[*prompt, *completion, EOS_ID] for prompt, completion in zip(prompts, completions, strict=True)]
    tokens_BL = torch.full((len(rows), max(map(len, rows))), PAD_ID)
    labels_BL = torch.full_like(tokens_BL, IGNORED_LABEL)
    for index, (row, prompt) in enumerate(zip(rows, prompts, strict=True)):
        tokens_BL[index, : len(row)] = torch.tensor(row)
        labels_BL[index, len(prompt) : len(row)] = tokens_BL[index, len(prompt) : len(row)]
    return tokens_BL, labels_BL


def warmup_then_cosine(num_steps: int, num_warmup: int) -> Callable[[int], float]:
    """Return the learning-rate factor by step: linear up to 1, then half a cosine down to 0."""

    def factor(step: int) -> float:
        if step < num_warmup:
            return (step + 1) / num_warmup
        num_decay = max(1, num_steps - num_warmup)
        return 0.5 * (1.0 + math.cos(math.pi * (step - num_warmup) / num_decay))

    return factor


def pretrain(
    model: Qwen2ForCausalLM,
    tokens_BL: torch.Tensor,
    labels_BL: torch.Tensor,
    *,
    batch_size: int,
    learning_rate: float,
) -> float:
    """Train with AdamW for one pass over the corpus, in order. Return the last 50 steps' mean loss, in nats."""
    num_steps = len(tokens_BL) // batch_size
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=learning_rate, betas=(0.9, 0.95), weight_decay=0.01, fused=True
    )
    schedule = LambdaLR(optimizer, warmup_then_cosine(num_steps, num_warmup=max(1, num_steps // 20)))
    losses: list[float] = []
    start_s = time.perf_counter()
    for step in range(num_steps):
        rows = slice(step * batch_size, (step + 1) * batch_size)
        with torch.autocast("cpu", torch.bfloat16):
            logits_BLV = model(input_ids=tokens_BL[rows, :-1]).logits
        loss = F.cross_entropy(
            logits_BLV.float().flatten(0, 1), labels_BL[rows, 1:].flatten(), ignore_index=IGNORED_LABEL
        )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        losses.append(loss.item())
        if (step + 1) % 100 == 0 or step + 1 == num_steps:
            recent = sum(losses[-50:]) / len(losses[-50:])
            elapsed_s = time.perf_counter() - start_s
            print(f"step {step + 1:5d}/{num_steps}  loss {recent:.4f}  {elapsed_s:5.0f} s", flush=True)
    return sum(losses[-50:]) / len(losses[-50:])


@torch.inference_mode()
def complete(
    model: Qwen2ForCausalLM,
    tokenizer: Qwen2Tokenizer,
    prompts: list[str],
    *,
    greedy: bool,
) -> list[str]:
    """Generate one completion per prompt, at temperature 1 or greedy, without eos and padding."""
    inputs = tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left")
    sampling = {"do_sample": False} if greedy else {"do_sample": True, "temperature": 1.0, "top_k": 0}
    output_BL = model.generate(
        input_ids=inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        max_new_tokens=MAX_NEW_TOKENS,
        **sampling,
    )
    return tokenizer.batch_decode(output_BL[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """Estimate without bias the chance that at least one of k samples is right (Chen et al. 2021, arXiv 2107.03374)."""
    return 1.0 - math.comb(num_samples - num_correct, k) / math.comb(num_samples, k)


def evaluate(
    model: Qwen2ForCausalLM, tokenizer: Qwen2Tokenizer, problems: list[Problem], *, num_samples: int
) -> dict[str, float]:
    """Measure held-out pass@k at temperature 1, greedy accuracy, share of completions with a box, and length."""
    model.eval()
    prompts = [problem.prompt for problem in problems]
    greedy = complete(model, tokenizer, prompts, greedy=True)
    samples = [complete(model, tokenizer, prompts, greedy=False) for _ in range(num_samples)]
    num_correct = [
        sum(is_correct(problem, completion) for completion in completions)
        for problem, completions in zip(problems, zip(*samples, strict=True), strict=True)
    ]
    everything = [completion for sample in samples for completion in sample]
    figures = {
        f"pass@{k}": sum(pass_at_k(num_samples, correct, k) for correct in num_correct) / len(problems)
        for k in (1, 4, 16)
    }
    figures["greedy_accuracy"] = sum(map(is_correct, problems, greedy)) / len(problems)
    figures["boxed_fraction"] = sum("\\boxed{" in text for text in everything) / len(everything)
    figures["mean_completion_characters"] = sum(map(len, everything)) / len(everything)
    return {name: round(value, 4) for name, value in figures.items()}


def write_problems(path: Path, problems: list[Problem]) -> None:
    """Write JSON lines of {"problem", "answer"}, both strings."""
    lines = [json.dumps({"problem": problem.text, "answer": problem.answer}) for problem in problems]
    path.write_text("\n".join(lines) + "\n")


def prepare_output(output: Path, *, overwrite: bool) -> None:
    model_dir = output / "model"
    if model_dir.exists():
        if not overwrite:
            raise SystemExit(f"--output {output}: {model_dir} exists; pass --overwrite to replace it.")
        shutil.rmtree(model_dir)
    output.mkdir(parents=True, exist_ok=True)


def parse_arguments() -> argparse.Namespace:
    habits = Habits()
    parser = argparse.ArgumentParser(description="Build and pretrain the small arithmetic model.")
    parser.add_argument("--output", type=Path, required=True, help="folder to write, e.g. examples/tiny")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing model")
    parser.add_argument("--seed", type=int, default=0, help="seed of splits, corpus, weights and samples")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch; the weights depend on it")
    parser.add_argument("--attempts", type=int, default=64_000, help="number of solutions, each seen once")
    parser.add_argument("--batch-size", type=int, default=64, help="solutions per step")
    parser.add_argument("--learning-rate", type=float, default=2e-3, help="peak learning rate")
    parser.add_argument("--slip", type=float, default=habits.slip, help="probability that a step goes wrong")
    parser.add_argument("--no-box", type=float, default=habits.no_box, help="probability of no \\boxed{}")
    parser.add_argument("--samples", type=int, default=32, help="samples per held-out problem, at least 16")
    arguments = parser.parse_args()
    if arguments.samples < 16:
        parser.error(f"--samples {arguments.samples}: pass@16 needs at least 16; choose 16 or more.")
    if arguments.attempts < arguments.batch_size:
        parser.error(f"--attempts {arguments.attempts}: less than one --batch-size; choose more.")
    return arguments


def main() -> None:
    arguments = parse_arguments()
    habits = Habits(slip=arguments.slip, no_box=arguments.no_box)
    output: Path = arguments.output
    prepare_output(output, overwrite=arguments.overwrite)
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)

    splits = make_splits(seed=arguments.seed, num_rl_train=NUM_RL_TRAIN, num_heldout=NUM_HELDOUT)
    write_problems(output / "train.jsonl", splits.rl_train)
    write_problems(output / "heldout.jsonl", splits.heldout)

    attempts = student_attempts(
        splits.pretrain,
        habits=habits,
        seed=arguments.seed,
        num_attempts=arguments.attempts,
    )
    tokenizer = build_tokenizer()
    tokens_BL, labels_BL = encode_corpus(tokenizer, list(attempts))
    model = build_model(vocab_size=len(tokenizer))
    start_s, cpu_start_s = time.perf_counter(), time.process_time()
    final_loss = pretrain(
        model, tokens_BL, labels_BL, batch_size=arguments.batch_size, learning_rate=arguments.learning_rate
    )
    pretraining = {
        "final_loss_nats": round(final_loss, 4),
        "wall_s": round(time.perf_counter() - start_s),
        "cpu_s": round(time.process_time() - cpu_start_s),
        "machine": f"{platform.system()} {platform.machine()}, CPU",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    model.save_pretrained(output / "model")
    tokenizer.save_pretrained(output / "model")

    recipe = {name: value for name, value in vars(arguments).items() if name not in ("output", "overwrite")}
    card = {
        "recipe": recipe,
        "num_parameters": model.num_parameters(),
        "num_problems": {name: len(problems) for name, problems in vars(splits).items()},
        "pretraining": pretraining,
        "heldout": evaluate(model, tokenizer, splits.heldout, num_samples=arguments.samples),
    }
    (output / "model_card.json").write_text(json.dumps(card, indent=2) + "\n")
    print(json.dumps(card, indent=2))


if __name__ == "__main__":
    main()
