"""What a model's files say of it, and which models are refused before a weight is read."""

import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest
import sentencepiece
from transformers import BertConfig, GPT2Config, LlamaConfig, MambaConfig, T5Config

from headway.config import EngineConfig
from headway.model_files import ModelFiles


def resolve(model, **fields) -> ModelFiles:
    return ModelFiles.resolve(EngineConfig(model=str(model), **fields))


@pytest.fixture
def make_folder(tmp_path):
    def make(config=None, generation=None, **changes) -> Path:
        config = config or LlamaConfig(architectures=["LlamaForCausalLM"], vocab_size=99, max_position_embeddings=128)
        content = {**config.to_dict(), **changes}
        (tmp_path / "config.json").write_text(json.dumps(content))
        if generation is not None:
            (tmp_path / "generation_config.json").write_text(json.dumps(generation))
        return tmp_path

    return make


class TestWhatTheFilesSay:
    def test_a_local_folder(self, model_folder):
        files = resolve(model_folder("llama"))
        assert files.path == model_folder("llama") and files.name == str(model_folder("llama"))
        assert (files.limits.vocab_size, files.limits.max_model_len, files.limits.eos_token_ids) == (256, 512, (1,))
        assert files.default_sampling == {}

    def test_the_served_name_can_be_chosen(self, model_folder):
        assert resolve(model_folder("llama"), served_model_name="mine").name == "mine"

    def test_names_for_the_longest_length(self, make_folder):
        assert (
            resolve(make_folder(GPT2Config(architectures=["GPT2LMHeadModel"], n_positions=77))).limits.max_model_len
            == 77
        )

    def test_the_user_may_shorten_it(self, make_folder):
        assert resolve(make_folder(), max_model_len=64).limits.max_model_len == 64

    def test_a_config_inside_another_is_found(self, make_folder):
        text = LlamaConfig(vocab_size=321, max_position_embeddings=55).to_dict()
        content = {"model_type": "llava", "architectures": ["LlavaForConditionalGeneration"], "text_config": text}
        folder = make_folder()
        (folder / "config.json").write_text(json.dumps(content))
        files = resolve(folder)
        assert (files.limits.vocab_size, files.limits.max_model_len) == (321, 55)

    @pytest.mark.parametrize(
        "generation, in_config, expected",
        [
            ({"eos_token_id": 5}, 2, (5,)),
            ({"eos_token_id": [9, 5, 9]}, 2, (5, 9)),
            ({}, 2, (2,)),
            (None, [3, 4], (3, 4)),
            (None, None, ()),
        ],
    )
    def test_end_of_sequence(self, generation, in_config, expected, make_folder):
        assert resolve(make_folder(generation=generation, eos_token_id=in_config)).limits.eos_token_ids == expected

    def test_default_sampling(self, make_folder):
        generation = {"temperature": 0.6, "top_p": 0.95, "top_k": None, "max_length": 9, "repetition_penalty": 1.1}
        generation["max_new_tokens"] = 77
        expected = {"temperature": 0.6, "top_p": 0.95, "repetition_penalty": 1.1, "max_tokens": 77}
        assert resolve(make_folder(generation=generation)).default_sampling == expected


class TestRefusals:
    """ValueError, one line, naming the value."""

    def refused(self, *words, model, **fields) -> None:
        with pytest.raises(ValueError) as caught:
            resolve(model, **fields)
        message = str(caught.value)
        assert "\n" not in message
        for word in (*words, str(model)):
            assert word in message

    @pytest.mark.parametrize("model", ["./nowhere", "/nowhere/at/all", "~/nowhere", "a/b/c"])
    def test_a_folder_that_is_not_there(self, model):
        self.refused("does not exist", model=model)

    def test_a_file(self, tmp_path):
        (tmp_path / "weights.gguf").write_text("")
        self.refused("is a file", model=tmp_path / "weights.gguf")

    def test_a_folder_without_a_config(self, tmp_path):
        self.refused("no config.json", model=tmp_path)

    def test_a_broken_config(self, tmp_path):
        (tmp_path / "config.json").write_text("{")
        self.refused("cannot read", "config.json", model=tmp_path)

    def test_an_unknown_kind_of_model(self, make_folder):
        self.refused("cannot read the config", model=make_folder(model_type="whatever"))

    @pytest.mark.parametrize("content", ["[1]", "{"])
    def test_a_broken_generation_config(self, content, make_folder):
        folder = make_folder()
        (folder / "generation_config.json").write_text(content)
        self.refused("generation_config.json", model=folder)

    def test_an_encoder_decoder(self, make_folder):
        folder = make_folder(T5Config(architectures=["T5ForConditionalGeneration"]))
        self.refused("T5ForConditionalGeneration", "encoder-decoder", model=folder)

    def test_a_model_that_is_not_causal(self, make_folder):
        self.refused(
            "BertForMaskedLM", "not a causal", model=make_folder(BertConfig(architectures=["BertForMaskedLM"]))
        )

    def test_a_length_beyond_the_models(self, make_folder):
        self.refused("129", "128", model=make_folder(), max_model_len=129)

    def test_a_length_too_short_for_a_prompt_and_an_answer(self, make_folder):
        with pytest.raises(ValueError, match="at least 2, got 1"):
            resolve(make_folder(), max_model_len=1)

    def test_a_model_without_a_length_needs_one(self, make_folder):
        folder = make_folder(MambaConfig(architectures=["MambaForCausalLM"]))
        self.refused("set max_model_len", model=folder)
        assert resolve(folder, max_model_len=50).limits.max_model_len == 50

    @pytest.mark.parametrize("field", ["rope_scaling", "rope_parameters"])
    def test_dynamic_ntk(self, field, make_folder):
        rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
        self.refused("dynamic NTK", model=make_folder(**{field: rope}))

    def test_longrope_beyond_its_boundary(self, make_folder):
        rope = {
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            "short_factor": [1.0] * 64,
            "long_factor": [2.0] * 64,
            "original_max_position_embeddings": 40,
            "factor": 3.2,
        }
        folder = make_folder(rope_parameters=rope)
        self.refused("longrope", "128", "at most 40", model=folder)
        assert resolve(folder, max_model_len=40).limits.max_model_len == 40


class TestHub:
    """Without a network: the client is replaced."""

    def test_an_id_is_downloaded(self, make_folder, monkeypatch):
        folder, calls = make_folder(), []
        (folder / "model.safetensors").write_bytes(b"")

        def download(repo_id, revision, allow_patterns):
            calls.append((repo_id, revision, "*.safetensors" in allow_patterns))
            return str(folder)

        monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
        files = resolve("some/model", revision="v1")
        assert files.path == folder and files.name == "some/model" and files.tokenizer == str(folder)
        assert calls == [("some/model", "v1", True)]

    def test_the_old_weight_format_is_fetched_only_where_there_is_no_other(self, make_folder, monkeypatch):
        folder, patterns = make_folder(), []

        def download(repo_id, revision, allow_patterns):
            patterns.append(set(allow_patterns) & {"*.safetensors", "*.bin"})
            return str(folder)

        monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
        resolve("some/model")
        assert patterns == [{"*.safetensors"}, {"*.bin"}]

    def test_what_cannot_be_fetched_is_a_value_error(self, monkeypatch):
        def offline(*args, **kwargs):
            raise OSError("no route to host\nmore")

        monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
        with pytest.raises(ValueError, match=r"'some/model' is neither .* fetched: no route to host$"):
            resolve("some/model")


class TestTokenizer:
    def test_it_is_the_models_own(self, model_folder):
        tokenizer = resolve(model_folder("llama")).load_tokenizer()
        assert tokenizer.encode("t5 t77") == [5, 77] and tokenizer.decode([5, 77]) == "t5 t77"

    def test_another_can_be_chosen(self, model_folder, make_folder):
        files = resolve(make_folder(), tokenizer=str(model_folder("llama")))
        assert files.load_tokenizer().encode("t9") == [9]

    def test_a_tokenizer_of_sentencepiece_alone_is_read(self, make_folder):
        """As in older checkpoints of Llama: there is tokenizer.model and no tokenizer.json."""
        folder = make_folder()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(["the quick brown fox", "jumps over the lazy dog"] * 50),
            model_writer=(content := io.BytesIO()),
            vocab_size=31,
            byte_fallback=False,
            minloglevel=2,
        )
        (folder / "tokenizer.model").write_bytes(content.getvalue())
        (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizer"}))
        tokenizer = resolve(folder).load_tokenizer()
        assert tokenizer.decode(tokenizer.encode("the fox", add_special_tokens=False)) == "the fox"

    def test_the_chat_template_of_older_multimodal_checkpoints_is_read(self, model_folder, tmp_path):
        folder = shutil.copytree(model_folder("llama"), tmp_path / "model")
        (folder / "chat_template.json").write_text(json.dumps({"chat_template": "{{ messages[0].content }}"}))
        assert resolve(folder).load_tokenizer().chat_template == "{{ messages[0].content }}"
        (folder / "chat_template.jinja").write_text("{{ 'newer' }}")
        assert resolve(folder).load_tokenizer().chat_template == "{{ 'newer' }}"

    def test_none_is_a_value_error(self, make_folder):
        folder = make_folder()
        with pytest.raises(ValueError, match=f"cannot load a tokenizer from .*{folder.name}"):
            resolve(folder).load_tokenizer()


def test_the_module_itself_imports_neither_torch_nor_transformers():
    code = "import sys, headway.model_files; print([m for m in ('torch', 'transformers') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
