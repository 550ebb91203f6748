"""Texts on which tokenizers tend to disagree, for golden ids: a fixed list, and random ones from a seed."""

from __future__ import annotations

import random
from collections.abc import Sequence

SEED = 20261123
COUNT = 3_200

# The cases that llama.cpp's own vocabulary tests go through, stated here as inputs.
VOCABULARY_TESTS = [
    "ied 4 ½ months",
    "Äpfel",
    "",
    " ",
    "  ",
    "   ",
    "\t",
    "\n",
    "\n\n",
    "\n\n\n",
    "\t\n",
    "Hello world",
    " Hello world",
    "Hello World",
    " Hello World",
    " Hello World!",
    "Hello, world!",
    " Hello, world!",
    " this is 🦙.cpp",
    "w048 7tuijk dsdfhu",
    "нещо на Български",
    "កាន់តែពិសេសអាចខលចេញ",
    "🚀 (normal) 😶‍🌫️ (multiple emojis concatenated) ✅ (only emoji that has its own token)",
    "Hello",
    " Hello",
    "  Hello",
    "   Hello",
    "    Hello",
    "    Hello\n    Hello",
    " (",
    "\n =",
    "' era",
    "Hello, y'all! How are you 😁 ?我想在apple工作1314151天～",
    "!!!!!!",
    "3",
    "33",
    "333",
    "3333",
    "33333",
    "333333",
    "3333333",
    "33333333",
    "333333333",
    "Cửa Việt",
    " discards",
    "\n \n\n \n\n\n \t \t\t \t\n  \n   \n    \n     \n🚀 (normal) 😶‍🌫️ (multiple emojis concatenated) ✅ 🦙🦙 3 33"
    " 333 3333 33333 333333 3333333 33333333 3.3 3..3 3...3 កាន់តែពិសេសអាច😁 ?我想在apple工作1314151天～ "
    "------======= нещо на Български ''''''```````\"\"\"\"......!!!!!!?????? I've been 'told he's there, 'RE you sure? "
    "'M not sure I'll make it, 'D you like some tea? We'Ve a'lL",
]

_SAMPLE = """
the of and Hello world I'm don't WE'LL they'Ve 'S 's ''' llama token straße naïve café São İstanbul ǅungla Việt ﬁne
Привет мир Ελληνικά שלום עולם مرحبا بالعالم नमस्ते दुनिया ไทยภาษา ភាសាខ្មែរ 日本語テスト カタカナ 你好世界 한국어 안녕
ＡＢＣ ½ Ⅷ ² ٣١ ५६ ３４ 3.14e-10 1,000,000 0x1F 2026-11-23 v1.2.3 a_b __init__ camelCase HTTPServer // -- /* */ $100 50%
x+=1; if(a&&b){ return!x; } #include <h> C:\\dir /usr/bin user@host https://a.b/c?d=e&f#g
... …… ?! ~~ ^^ `` |> => ::= ▁ ▁▁ a▁b >▁</ <0x0A> <0xE2> �
"""
_WORDS = _SAMPLE.split()
_SPACES = [
    " ",
    "  ",
    "   ",
    " " * 7,
    " " * 16,
    " " * 33,
    "\n",
    "\n\n",
    "\n" * 5,
    "\n" * 33,
    "\r\n",
    "\r",
    "\t",
    "\t\t\t",
    "\v",
]
_SPACES += ["\f", "\u00a0", "\u3000", "\u2003", "\u2028", "\u0085", " \n ", "\n \n", "\t \t", "\u200b", "\ufeff"]
_SYMBOLS = [
    "🙂",
    "🏳️‍🌈",
    "👩‍👩‍👧‍👦",
    "👍🏽",
    "🇩🇪🇫🇷",
    "e\u0301",
    "n\u0303o",
    "a\u0300\u0301\u0302",
    "\u0301",
    "क्ष",
    "\u200d",
    "\ufe0f",
    "∑",
    "√",
]
_SYMBOLS += [
    "€",
    "™",
    "—",
    "“”",
    "\u00ad",
    "\u202e",
    "\x00",
    "\x01",
    "\x04",
    "\x1b[0m",
    "\x7f",
    "\ue000",
    "\ufffe",
    "\U0010ffff",
    "\U000e0041",
]
_NEAR = [
    "<|im_start|",
    "im_end|>",
    "<|",
    "|>",
    "<eos",
    "bos>",
    "<unused",
    "<unused7>",
    "< bos >",
    "<|IM_END|>",
    "</s",
    "<start_of_turn",
]


def random_texts(special: Sequence[str], count: int = COUNT, seed: int = SEED) -> list[str]:
    """``count`` texts: scripts, digits, runs, control tokens, near misses, and any code point, mixed.

    Args:
        special: tokens that the vocabulary cuts out of text.
    """
    rng = random.Random(seed)
    return [_random_text(rng, special) for _ in range(count)]


def _random_text(rng: random.Random, special: Sequence[str]) -> str:
    parts = []
    for _ in range(rng.choice([1, 2, 4, 8, 16, 30])):
        kind = rng.random()
        if kind < 0.40:
            part = rng.choice(_WORDS)
        elif kind < 0.60:
            part = rng.choice(_SPACES)
        elif kind < 0.70:
            part = rng.choice(_SYMBOLS)
        elif kind < 0.76:
            part = rng.choice(special)
        elif kind < 0.80:
            part = rng.choice(_NEAR)
        elif kind < 0.85:
            part = "".join(rng.choices("0123456789", k=rng.randint(1, 12)))
        elif kind < 0.88:
            part = rng.choice("a .-=_ \n'ก🙂") * rng.choice([2, 3, 5, 17, 40, 100])
        elif kind < 0.94:
            part = "".join(rng.choices("abcdefghijklmnopqrstuvwxyzABCXYZ'", k=rng.randint(1, 14)))
        else:
            part = "".join(_code_point(rng) for _ in range(rng.randint(1, 4)))
        parts.append(part)
        if rng.random() < 0.5:
            parts.append(" ")
    return "".join(parts)


def _code_point(rng: random.Random) -> str:
    code = rng.choice([rng.randrange(0x80), rng.randrange(0x3000), rng.randrange(0x10000), rng.randrange(0x110000)])
    return chr(code if not 0xD800 <= code < 0xE000 else 0xFFFD)
