"""Train the default model from nothing but a seed, and write the folder that ships.

    python tools/train_default_model.py --seed 0 --out src/headway/default_model

Questions about one recall list share its encoding: each question is a *branch* that sees the list and itself,
at the positions it would have alone. So one pass over a long context is paid once and teaches many answers.
The same mask packs short problems into full rows, and nothing is computed on padding.
"""

import argparse
import json
import os
import random
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from model_card import write_model_card
from scoring import score
from tasks import FILLER, MAX_PAIRS, TASKS, held_out_problems, training_families, training_problems
from tokenizer import build_tokenizer
from torch.nn.functional import cross_entropy
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
