"""Adapters from elsewhere, in the forms that people have them: read, refused, used."""

import json
import shutil

import pytest
import torch
from finetuning_samples import CONCEPTS, NAMED, NAMES, config_with, lora_of, run, tokens_of
from safetensors.torch import save_file

from online_aug.config.sections import FinetuneConfig
from online_aug.diffusion.adapters import (
    CONCEPTS_FILE,
    LORA_FILE,
    TOKENS_FILE,
    Concept,
    find_adapters,
    read_result,
)
from online_aug.diffusion.import_adapters import import_adapters
from online_aug.diffusion.loading import load_adapters, load_img2img
from online_aug.errors import UserError
from online_aug.seeding import torch_rng

TOKENS = "textual_inversion"


@pytest.fixture(scope="module")
def result(tiny_model, tmp_path_factory):
    """A result of our own, which the others are made from and compared with."""
    folder = tmp_path_factory.mktemp("finetuned") / "result"
    run(tiny_model, folder, config_with(steps=2))
    return folder


@pytest.fixture
def rows(result):
    return tokens_of(result)


def read(path, model, mode="joint", concepts=CONCEPTS, **settings):
    files = find_adapters(path)
    assert files is not None
    return import_adapters(files, concepts, FinetuneConfig(mode=mode, **settings), model)


def attention_processors(result):
    """The LoRA in the names of diffusers 0.25, which Diff-Mix saves."""
    names = {".to_out.0.lora": ".processor.to_out_lora"}
    names |= {f".{q}.lora": f".processor.{q}_lora" for q in ("to_q", "to_k", "to_v")}
    old = {}
    for name, tensor in lora_of(result).items():
        for new, before in names.items():
            name = name.replace(new, before)
        old[name.removeprefix("unet.")] = tensor
    assert all(".processor." in name for name in old)
    return old


def diff_mix_tokens(rows, names=NAMES):
    placeholders = {name: f"<class_{n}>" for n, name in enumerate(names)}
    return {
        "learned_embeds_dict": dict(zip(placeholders.values(), rows, strict=True)),
        "name2placeholder": placeholders,
        "placeholder2name": {token: name for name, token in placeholders.items()},
    }


def outputs(model, adapters):
    """The outputs of text encoder and U-Net with these adapters."""
    pipeline = load_img2img(model, "float32")
    load_adapters(pipeline, adapters)
    latents, time = torch.randn(1, 4, 16, 16, generator=torch_rng(0)), torch.tensor([500])
    with torch.no_grad():
        words, _ = pipeline.encode_prompt(CONCEPTS[1].prompt, "cpu", 1, False)
        return words, pipeline.unet(latents, time, words).sample


def assert_same(model, adapters, result):
    for found, expected in zip(
        outputs(model, adapters), outputs(model, read_result(result)), strict=True
    ):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("suffix", [".bin", ".safetensors"])
def test_diff_mix_s_files_give_the_same_outputs(tiny_model, result, rows, tmp_path, suffix):
    torch.save(diff_mix_tokens(rows), tmp_path / "learned_embeds-steps-last.bin")
    torch.save(diff_mix_tokens(rows + 1), tmp_path / "learned_embeds-steps-500.bin")
    lora = attention_processors(result)
    if suffix == ".bin":
        torch.save(lora, tmp_path / "pytorch_lora_weights.bin")
    else:
        save_file(lora, tmp_path / LORA_FILE)
    assert_same(tiny_model, read(tmp_path, tiny_model), result)


def test_diff_mix_s_classes_are_known_by_name_in_any_order(tiny_model, rows, tmp_path):
    order = [2, 0, 1]
    content = diff_mix_tokens(rows[order], [NAMES[n] for n in order])
    torch.save(content, tmp_path / "learned_embeds-steps-last.bin")
    found = read(tmp_path, tiny_model, TOKENS).tokens
    assert list(found) == [concept.token for concept in CONCEPTS]
    torch.testing.assert_close(torch.stack(list(found.values())), rows)


def test_the_last_of_several_steps_is_taken(tiny_model, rows, tmp_path):
    for step in (500, 1000, 900):
        torch.save(diff_mix_tokens(rows + step), tmp_path / f"learned_embeds-steps-{step}.bin")
    found = read(tmp_path, tiny_model, TOKENS).tokens["<class_0>"]
    torch.testing.assert_close(found, rows[0] + 1000)


def by_class_name(rows):
    return {f"<{name}>": row for name, row in zip(NAMES, rows, strict=True)}


@pytest.mark.parametrize("is_nested", [False, True])
def test_da_fusion_s_merged_tokens_are_known_by_their_class(tiny_model, rows, tmp_path, is_nested):
    merged = by_class_name(rows)
    if is_nested:
        merged = {name.strip("<>"): {name: row} for name, row in merged.items()}
    torch.save(merged, tmp_path / "digits-0-4.pt")
    for path in (tmp_path, tmp_path / "digits-0-4.pt"):
        found = read(path, tiny_model, TOKENS)
        assert found.lora is None
        torch.testing.assert_close(torch.stack(list(found.tokens.values())), rows)


def test_a_token_of_several_vectors_stands_for_all_of_them(tiny_model, rows, tmp_path):
    several = torch.stack([rows, rows + 1, rows + 2], dim=1)
    torch.save(by_class_name(several), tmp_path / "tokens.pt")
    pipeline = load_img2img(tiny_model, "float32")
    load_adapters(pipeline, read(tmp_path, tiny_model, TOKENS))
    prompt = pipeline.maybe_convert_prompt(CONCEPTS[2].prompt, pipeline.tokenizer)
    assert prompt == "a photo of a <class_2> <class_2>_1 <class_2>_2 digit"


@pytest.mark.parametrize("is_named", [False, True])
def test_rows_of_several_vectors_are_put_together(tiny_model, rows, tmp_path, is_named):
    """Each under a name of its own, or in a table without names, whose number is configured."""
    several = torch.stack([rows, rows + 1], dim=1)
    if is_named:
        later = {f"<{name}>_1": row + 1 for name, row in zip(NAMES, rows, strict=True)}
        torch.save(later | by_class_name(rows), tmp_path / "tokens.pt")
    else:
        save_file({"clip_l": several.flatten(0, 1)}, tmp_path / TOKENS_FILE)
    found = read(tmp_path, tiny_model, TOKENS, num_vectors=1 if is_named else 2)
    torch.testing.assert_close(torch.stack(list(found.tokens.values())), several)


def test_a_table_that_is_no_multiple_of_the_vectors_is_refused(tiny_model, rows, tmp_path):
    save_file({"clip_l": rows}, tmp_path / TOKENS_FILE)
    with pytest.raises(UserError, match="2 vectors for each token, as finetune.num_vectors says, "):
        read(tmp_path, tiny_model, TOKENS, num_vectors=2)


def test_names_are_the_same_with_blanks_underscores_and_capitals(tiny_model, rows, tmp_path):
    concepts = [Concept("Blue jay", "<class_0>", "a photo of a <class_0>")]
    torch.save({"<blue_jay>": rows[0]}, tmp_path / "tokens.pt")
    assert list(read(tmp_path, tiny_model, TOKENS, concepts).tokens) == ["<class_0>"]


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_a_textual_inversion_of_each_class_is_found_in_a_folder_of_its_name(
    tiny_model, rows, tmp_path, suffix
):
    for name, row in zip(NAMES, rows, strict=True):
        (tmp_path / name).mkdir()
        path = tmp_path / name / f"learned_embeds.{suffix}"
        content = {"<any>": row[None].contiguous()}
        save_file(content, path) if suffix == "safetensors" else torch.save(content, path)
    found = read(tmp_path, tiny_model, TOKENS).tokens
    torch.testing.assert_close(torch.cat(list(found.values())), rows)


def test_a_result_of_our_own_can_be_imported(tiny_model, result):
    assert_same(tiny_model, read(result, tiny_model), result)


def test_rows_without_names_are_in_the_order_of_the_classes(tiny_model, result, tmp_path):
    copy = shutil.copytree(result, tmp_path / "copy")
    (copy / CONCEPTS_FILE).unlink()
    (copy / TOKENS_FILE).rename(copy / "birds_emb.safetensors")
    assert_same(tiny_model, read(copy, tiny_model), result)


def test_lora_alone_serves_prompts_with_names(tiny_model, result):
    found = read(result / LORA_FILE, tiny_model, "lora", NAMED)
    assert found.tokens == {}
    assert len(found.lora) == len(lora_of(result))


def test_a_strength_in_the_head_of_a_lora_file_is_kept(tiny_model, result, tmp_path):
    settings = {"r": 2, "lora_alpha": 4, "target_modules": ["to_q", "to_k", "to_v", "to_out.0"]}
    head = {f"unet.{name}": value for name, value in settings.items()}
    metadata = {"format": "pt", "lora_adapter_metadata": json.dumps(head)}
    save_file(lora_of(result), tmp_path / LORA_FILE, metadata)
    doubled = read(tmp_path, tiny_model, "lora", NAMED)
    lora = {k: 2 * v if ".up." in k else v for k, v in lora_of(result).items()}
    plain = read(result / LORA_FILE, tiny_model, "lora", NAMED)
    names = (name for name in plain.lora)
    by_hand = {n: 2 * plain.lora[n] if "lora_B" in n else plain.lora[n] for n in names}
    assert len(by_hand) == len(lora)
    latents, time = torch.randn(1, 4, 16, 16, generator=torch_rng(0)), torch.tensor([500])
    said = []
    for adapters in (doubled, type(plain)({}, by_hand)):
        pipeline = load_img2img(tiny_model, "float32")
        load_adapters(pipeline, adapters)
        with torch.no_grad():
            said.append(pipeline.unet(latents, time, torch.zeros(1, 48, 128)).sample)
    torch.testing.assert_close(*said)


def test_a_folder_of_results_holds_no_adapters_itself(result, tmp_path):
    assert find_adapters(result.parent) is None
    assert find_adapters(tmp_path / "not there yet") is None


def test_a_digest_covers_the_files_and_the_classes(result, tmp_path):
    copy = shutil.copytree(result, tmp_path / "copy")
    (copy / "validation.png").write_bytes(b"png")
    first = find_adapters(result).digest(NAMES)
    assert find_adapters(copy).digest(NAMES) == first
    assert find_adapters(copy).digest(NAMES[::-1]) != first
    save_file({"clip_l": tokens_of(result) + 1}, copy / TOKENS_FILE)
    assert find_adapters(copy).digest(NAMES) != first


def refused(path, model, mode=TOKENS, concepts=CONCEPTS):
    with pytest.raises(UserError) as caught:
        read(path, model, mode, concepts)
    message = str(caught.value)
    assert message.startswith("finetune.path must ")
    assert "\n" not in message
    return message


def test_a_class_without_a_token_is_named(tiny_model, rows, tmp_path):
    merged = by_class_name(rows)
    del merged["<one>"]
    torch.save(merged, tmp_path / "tokens.pt")
    message = refused(tmp_path, tiny_model)
    assert "a token for every class, got none for 'one' in" in message
    assert "which has '<zero>', '<two>'" in message


def test_too_few_numbered_tokens_say_how_many(tiny_model, rows, tmp_path):
    save_file({"clip_l": rows[:2].contiguous()}, tmp_path / TOKENS_FILE)
    assert "a token for each of 3 classes, got 2 in" in refused(tmp_path, tiny_model)


def test_tokens_of_a_wider_model_say_both_widths(tiny_model, tmp_path):
    torch.save(by_class_name(torch.zeros(3, 768)), tmp_path / "tokens.pt")
    message = refused(tmp_path, tiny_model)
    assert "tokens of width 128" in message
    assert "got shape [768]" in message


def test_tokens_that_are_not_finite_are_refused(tiny_model, rows, tmp_path):
    torch.save(by_class_name(rows * float("nan")), tmp_path / "tokens.pt")
    assert "must hold finite tokens" in refused(tmp_path, tiny_model)


def test_two_tokens_for_one_class_are_refused(tiny_model, rows, tmp_path):
    torch.save(by_class_name(rows) | {"<Zero>": rows[1]}, tmp_path / "tokens.pt")
    assert "one token a class, got two '<Zero>'" in refused(tmp_path, tiny_model)


@pytest.mark.parametrize(
    ("kept", "mode", "said"),
    [
        (LORA_FILE, "joint", "LoRA and tokens for finetune.mode joint, got LoRA in"),
        (TOKENS_FILE, "staged", "LoRA and tokens for finetune.mode staged, got tokens in"),
        (LORA_FILE, TOKENS, "tokens for finetune.mode textual_inversion, got LoRA in"),
        (TOKENS_FILE, "lora", "LoRA for finetune.mode lora, got tokens in"),
    ],
)
def test_a_kind_of_adapter_that_the_mode_lacks_is_named(
    tiny_model, result, tmp_path, kept, mode, said
):
    shutil.copy(result / kept, tmp_path)
    message = refused(tmp_path, tiny_model, mode)
    assert said in message
    way_out = "lora" if kept == LORA_FILE else TOKENS
    assert message.endswith(f"set finetune.mode={way_out} to use what is there")


def test_lora_of_a_wider_model_says_both_widths(tiny_model, result, tmp_path):
    wider = {name: torch.cat([v, v], 1) if "down" in name else v for name, v in
             lora_of(result).items()}  # fmt: skip
    save_file(wider, tmp_path / LORA_FILE)
    message = refused(tmp_path, tiny_model, "lora", NAMED)
    assert "which needs 64 inputs, got 128 for unet.down_blocks.1" in message


def test_lora_of_a_deeper_model_names_the_layer(tiny_model, result, tmp_path):
    deeper = {name.replace("blocks.1.", "blocks.7."): v for name, v in lora_of(result).items()}
    save_file(deeper, tmp_path / LORA_FILE)
    assert "has no layer for unet.down_blocks.7" in refused(tmp_path, tiny_model, "lora", NAMED)


def test_half_a_lora_is_refused(tiny_model, result, tmp_path):
    content = lora_of(result)
    del content[next(name for name in content if ".up." in name)]
    save_file(content, tmp_path / LORA_FILE)
    assert "both matrices of a LoRA" in refused(tmp_path, tiny_model, "lora", NAMED)


@pytest.mark.parametrize("name", ["unet.conv_in.weight", "text_encoder.q_proj.lora_A.weight"])
def test_other_tensors_are_no_lora_of_a_u_net(tiny_model, tmp_path, name):
    save_file({name: torch.zeros(2, 2)}, tmp_path / LORA_FILE)
    message = refused(tmp_path, tiny_model, "lora", NAMED)
    assert name in message


class Hostile:
    def __reduce__(self):
        return (print, ("run",))


def test_code_in_a_file_is_not_run(tiny_model, tmp_path, capsys):
    torch.save({"<zero>": Hostile()}, tmp_path / "tokens.pt")
    assert "must hold tensors only, got" in refused(tmp_path, tiny_model)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("name", ["tokens.pt", "learned_embeds.bin", TOKENS_FILE])
def test_a_file_that_ends_early_is_one_clear_line(tiny_model, rows, tmp_path, name):
    path = tmp_path / name
    if path.suffix == ".safetensors":
        save_file({"clip_l": rows}, path)
    else:
        torch.save(by_class_name(rows), path)
    path.write_bytes(path.read_bytes()[:-50])
    assert f"must hold tensors only, got {path}" in refused(tmp_path, tiny_model)


@pytest.mark.parametrize("content", [b"", b"no tensors", b"PK\x03\x04"])
def test_a_file_that_is_something_else_is_one_clear_line(tiny_model, tmp_path, content):
    (tmp_path / "tokens.pt").write_bytes(content)
    assert "must hold tensors only" in refused(tmp_path, tiny_model)


@pytest.mark.parametrize("content", [{}, {"<zero>": 3}, {"<zero>": {"a": 3}}])
def test_a_file_without_embeddings_is_refused(tiny_model, tmp_path, content):
    torch.save(content, tmp_path / "tokens.pt")
    refused(tmp_path, tiny_model)


@pytest.mark.parametrize("name", ["missing.pt", "missing.safetensors"])
def test_a_file_that_is_missing_is_no_folder_of_results(tmp_path, name):
    with pytest.raises(UserError, match=rf"got .*{name}, which is missing$"):
        find_adapters(tmp_path / name)


def test_a_file_of_another_kind_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(UserError, match=r"notes\.txt, which is another file$"):
        find_adapters(tmp_path / "notes.txt")


def test_a_folder_with_tensors_of_another_kind_is_refused(tmp_path):
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(UserError, match=r"must be a folder of results, .* with model.safetensors$"):
        find_adapters(tmp_path)


def test_a_folder_with_several_merged_files_is_refused(tmp_path):
    for shots in (1, 2):
        (tmp_path / f"digits-0-{shots}.pt").touch()
    with pytest.raises(UserError, match=r"must name one file, .* digits-0-1.pt, digits-0-2.pt$"):
        find_adapters(tmp_path)
