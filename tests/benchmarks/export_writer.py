"""Write an export of any size, as DiscordChatExporter would: seeded, realistic, seconds per GB.

  python -m tests.benchmarks.export_writer FILE --messages 3000000

A job is one prompt of one user; the messages of a job (a grid, its progress, its upscales) share
both, as in a real channel. All words are invented.
"""

import argparse
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

BATCH = 1 << 17  # messages at once
LONGEST_STEP = 1 << 34  # from one snowflake to the next, 4 seconds; half of it on average
# From the first message; on 2024-02-14 the version of prompts without --v became 6, which the
# plain queries that ours is compared with do not know.
LONGEST_SPAN_MS = 280 * 24 * 3600 * 1000
FIRST_ID = 1_103_834_580_829_650_648  # of an attachment; a snowflake of 2023-05-05
HEADER = b"AuthorID,Author,Date,Content,Attachments,Reactions\n"
SYLLABLES = [f"{a}{b}" for a in "klmrtvdfgh" for b in ("a", "or", "in")]
LOOKS = ["oil painting", "35mm film", "soft light", "wide shot", "blue hour", "macro", "fog", "4k"]
ODD = [
    "a 3 “quoted” fox",
    "南极 的 企鹅",
    "🦊 in snow",
    'the ""red"" door',
    "two ** stars",
    "a\nlake",
]

# (share, text); shares of a table sum to 1
ACTIONS = [
    (0.440, "** - {user}{mode}"),
    (0.050, "** - {user} (62%){mode}"),
    (0.030, "** - {user} (Waiting to start)"),
    (0.280, "** - Image #{n} {user} "),
    (0.030, "** - Upscaled by {user}{mode}"),
    (0.010, "** - Upscaled (Subtle) by {user}{mode}"),
    (0.090, "** - Variations by {user}{mode}"),
    (0.020, "** - Variations (Strong) by {user}{mode}"),
    (0.020, "** - Zoom Out by {user}{mode}"),
    (0.010, "** - Pan Left by {user}{mode}"),
    (0.020, "** - Remix by {user}{mode}"),
]
MODES = [
    (0.55, " (fast)"),
    (0.25, " (relaxed)"),
    (0.05, " (turbo)"),
    (0.05, " (fast, stealth)"),
    (0.10, " (Open on website for full quality) (fast)"),
]
VERSIONS = [
    (0.25, " --v 5.2"),
    (0.25, " --v 5.1"),
    (0.15, ""),
    (0.20, " --v 5"),
    (0.10, " --v 4"),
    (0.05, " --niji 5"),
]
STYLES = [(0.86, ""), (0.10, " --style raw"), (0.02, " --raw"), (0.02, " —style raw")]
ASPECTS = [
    (0.40, ""),
    (0.20, " --ar 3:2"),
    (0.20, " --ar 16:9"),
    (0.15, " --ar 2:3"),
    (0.03, " --ar 5:2"),
    (0.02, " --aspect 4:5"),
]
EXTRAS = [
    (0.60, ""),
    (0.15, " --s 250"),
    (0.10, " --q 2 --c 10"),
    (0.05, " --no text, frame"),
    (0.04, " --seed 6894"),
    (0.03, " --tile"),
    (0.02, "::2 fog::1"),
    (0.01, " --v5"),
]


def pick(rng: np.random.Generator, table: list[tuple[float, str]], count: int) -> pa.Array:
    """Draw texts by their shares."""
    shares = np.array([share for share, _ in table])
    rows = rng.choice(len(table), count, p=shares / shares.sum())
    return pa.array([text for _, text in table]).take(pa.array(rows))


def invented_words(rng: np.random.Generator, count: int) -> list[str]:
    """Invent words of two or three syllables."""
    return [
        "".join(SYLLABLES[i] for i in rng.integers(0, len(SYLLABLES), length))
        for length in rng.integers(2, 4, count)
    ]


class Writer:
    """Pools that all batches draw from."""

    def __init__(self, seed: int, users: int, messages: int) -> None:
        """Invent words, phrases and users, and so short steps that all messages fit the span."""
        self.longest_step = min(LONGEST_STEP, 2 * (LONGEST_SPAN_MS << 22) // messages)
        self.rng = np.random.default_rng(seed)
        words = np.array(invented_words(self.rng, 3000))
        lengths = self.rng.integers(2, 7, 20_000)
        phrases = [" ".join(words[self.rng.integers(0, len(words), n)]) for n in lengths]
        self.phrases = pa.array(phrases)
        self.looks = pa.array(LOOKS)
        ids = 10**17 + self.rng.choice(8 * 10**17, users)
        mentions = [f"<@{number}>" for number in ids]
        for i in range(0, users, 50):
            mentions[i] = f"@{words[i % len(words)].title()} {i} (AI)"
        self.popularity = self.rng.permutation(users)
        mentions[self.popularity[40]] = "@Unknown"
        self.mentions = pa.array(mentions)
        self.names = pa.array([words[i % len(words)].title() + str(i) for i in range(users)])
        self.last_id = FIRST_ID

    def jobs(self, count: int) -> tuple[pa.Array, np.ndarray]:
        """Make prompts and who typed them; few users type most."""
        rng = self.rng
        ranks = (len(self.mentions) * rng.random(count) ** 3).astype(np.int64)
        parts = [
            self.phrases.take(pa.array(rng.integers(0, len(self.phrases), count))) for _ in "123"
        ]
        caption = pc.binary_join_element_wise(
            *parts, self.looks.take(pa.array(rng.integers(0, len(LOOKS), count))), ", "
        )
        odd = pa.array(ODD).take(pa.array(rng.integers(0, len(ODD), count)))
        draw = rng.random(count)
        caption = pc.if_else(
            pa.array(draw < 0.04), pc.binary_join_element_wise(caption, odd, " "), caption
        )
        link = pc.binary_join_element_wise("<https://s.mj.run/Xg2Gq1TXMgc>", caption, " ")
        caption = pc.if_else(pa.array((draw > 0.04) & (draw < 0.10)), link, caption)
        caption = pc.if_else(pa.array((draw > 0.10) & (draw < 0.103)), "fox", caption)
        bloody = pc.binary_join_element_wise(caption, "gore", " ")
        caption = pc.if_else(pa.array((draw > 0.11) & (draw < 0.115)), bloody, caption)
        caption = pc.if_else(pa.array((draw > 0.12) & (draw < 0.121)), "", caption)
        tables = (EXTRAS, VERSIONS, ASPECTS, STYLES)
        prompt = pc.binary_join_element_wise(
            caption, *(pick(rng, table, count) for table in tables), ""
        )
        return prompt, self.popularity[ranks]

    def messages(self, count: int) -> pa.Array:
        """Make `count` rows of CSV."""
        rng = self.rng
        prompts, typed_by = self.jobs(count // 3 + 1)
        job = np.sort(rng.integers(0, len(prompts), count))
        job = np.clip(job + rng.integers(-20, 20, count), 0, len(prompts) - 1)
        user = pa.array(typed_by[job])
        prompt = prompts.take(pa.array(job))
        action = pick(rng, ACTIONS, count)
        for hole, text in (
            ("{user}", self.mentions.take(user)),
            ("{mode}", pick(rng, MODES, count)),
            ("{n}", pc.cast(pa.array(rng.integers(1, 5, count)), pa.string())),
        ):
            action = _fill(action, hole, text)
        content = pc.binary_join_element_wise("**", prompt, action, "")
        chatter = self.phrases.take(pa.array(rng.integers(0, len(self.phrases), count)))
        content = pc.if_else(pa.array(rng.random(count) < 0.015), chatter, content)
        ids = self.last_id + np.cumsum(rng.integers(1, self.longest_step, count))
        self.last_id = int(ids[-1])
        return pc.binary_join_element_wise(
            '"936929561302675456","Midjourney Bot","',
            _date(ids),
            '","',
            content,
            '","',
            self._link(ids, user, prompt),
            '",""\n',
            "",
        )

    def _link(self, ids: np.ndarray, user: pa.Array, prompt: pa.Array) -> pa.Array:
        count, rng = len(ids), self.rng
        slug = pc.replace_substring_regex(
            pc.utf8_slice_codeunits(prompt, 0, 32), "[^A-Za-z0-9]+", "_"
        )
        tail = pc.cast(pa.array(rng.integers(10**11, 10**12, count)), pa.string())
        link = pc.binary_join_element_wise(
            "https://cdn.discordapp.com/attachments/995431151084773486/",
            pc.cast(pa.array(ids), pa.string()),
            "/",
            self.names.take(user),
            "_",
            slug,
            "_696eb8b4-dc01-4555-aa1a-",
            tail,
            ".png",
            "",
        )
        return pc.if_else(pa.array(rng.random(count) < 0.02), "", link)


def _fill(texts: pa.Array, hole: str, fillings: pa.Array) -> pa.Array:
    """Put a text into each row's hole; rows without one stay."""
    split = pc.split_pattern(texts, hole, max_splits=1)
    has = pc.greater(pc.list_value_length(split), 1)
    before = pc.list_element(split, 0)
    after = pc.list_element(pc.if_else(has, split, pa.scalar(["", ""])), 1)
    return pc.if_else(has, pc.binary_join_element_wise(before, fillings, after, ""), before)


def _date(ids: np.ndarray) -> pa.Array:
    """Read the time that a snowflake holds, milliseconds since 2015."""
    moments = pa.array((ids >> 22) + 1_420_070_400_000, pa.timestamp("ms"))
    return pc.binary_join_element_wise(
        pc.strftime(moments, format="%Y-%m-%dT%H:%M:%S"), "0000+00:00", ""
    )


def write_export(path: Path, messages: int, seed: int = 0, users: int = 50_000) -> None:
    """Write a CSV of `messages` rows."""
    writer = Writer(seed, users, messages)
    with path.open("wb", buffering=0) as file:
        file.write(HEADER)
        for first in range(0, messages, BATCH):
            rows = writer.messages(min(BATCH, messages - first))
            start, end = (int(o) for o in np.frombuffer(rows.buffers()[1], np.int32)[[0, -1]])
            file.write(rows.buffers()[2][start:end])


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("path", type=Path, metavar="FILE")
    parser.add_argument("--messages", type=int, default=3_000_000)
    options = parser.parse_args()
    write_export(options.path, options.messages)
    print(f"{options.path}: {options.path.stat().st_size / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
