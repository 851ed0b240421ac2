"""Make the sample: a Discord export in true form, and the pictures that its links point to.

Run as `python -m models.base.make_export --pictures models/base/corpus/pictures.parquet
--out data/sample`. It writes `messages.csv.gz`, as DiscordChatExporter does, and
`cdn/attachments/<channel>/<attachment>/<name>`, a mirror of the picture host.

Nothing here was scraped. Users, ids and prompts are invented by a seeded generator; the
pictures are the fluent-3d emoji of the table (NOTICE says whose). One upscaled raw message per
emoji leads to its picture, a few more to one in another skin tone; all other messages are what
makes an export an export, and their links lead nowhere. The same table and seed give the same
bytes.
"""

import argparse
import csv
import gzip
import io
import math
import random
import re
import shutil
import uuid
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image

from models.base.heldout import planned_caption
from stages.harness.files import replacing
from stages.images.holdout import normalised_caption

STYLE = "fluent-3d"
MESSAGES = 20_500
USERS = 400
ZIPF_EXPONENT = 0.62  # of upscales over users; the first 40 of 400 then make about 35 % of them
SECOND_MESSAGES = 100  # the same caption by another user, with another skin tone
SIDE_PX = 96
WIDE_PX = 144  # longer side at 3:2
WEBP_QUALITY = 90

EXPORT = "messages.csv.gz"
HEADER = ("AuthorID", "Author", "Date", "Content", "Attachments", "Reactions")
BOT = ("936929561302675456", "Midjourney Bot")
NIJI_BOT = ("1022952195194359889", "niji journey Bot")
CHANNELS = ("995431151084773486", "1008571045445882941", "1008571103872553011")
FIRST_DAY = datetime(2023, 5, 5, tzinfo=UTC)
LAST_DAY = datetime(2024, 1, 31, tzinfo=UTC)
SIGNED_FROM = datetime(2023, 12, 20, tzinfo=UTC)  # links carry ex, is and hm from here on
NEW_VERSIONS = (
    (datetime(2023, 6, 22, tzinfo=UTC), "5.2", "5.1"),
    (datetime(2023, 12, 21, tzinfo=UTC), "6.0", "5"),
)
DISCORD_EPOCH = datetime(2015, 1, 1, tzinfo=UTC)  # Discord's developer reference, "Snowflakes"
CUT_CHARS = 1600


@dataclass(frozen=True, slots=True)
class User:
    """Who asks the bot. Each is named in one form only, as by one exporter setting."""

    name: str
    mention: str  # <@id> or @Name
    weight: float  # share of messages


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A message before it has a date and ids."""

    content: str
    name: str = ""  # stem of the attachment's file name; empty: no attachment
    picture: bytes | None = None  # what the mirror holds; None: a dead link


# --- what people type -------------------------------------------------------------------------

SUBJECTS = (
    "a lighthouse in a storm", "portrait of an old fisherman", "robot gardener", "tea house",
    "street market at night", "a fox made of paper", "mountain village", "astronaut", "glass city",
    "a girl with a red umbrella", "vintage car", "dragon asleep on books", "isometric kitchen",
    "whale in the clouds", "forest spirit", 'neon sign that says "open"', "abandoned station",
    "cat in a suit", "desert caravan", "underwater library", "a knight, tired, at dawn",
    "logo for a bakery", "sneaker design", "南极应该是什么样子？", "桜の下の猫", "зимний лес",
    "مدينة قديمة", "café à Paris, l'hiver", "🦊 reading a 📖", "old map\nof an island",
    "two ** stars inside", "poster (1960s), jazz band", "woman, half-length\nstudio light",
)  # fmt: skip
STYLES = (
    "cinematic light", "watercolor", "35mm film", "ukiyo-e", "octane render", "line art",
    "soft pastel", "dramatic shadows", "4k", "knolling", "vector, flat", "golden hour", "pinkcore",
    "low poly", "oil on canvas", "(fast) sketch", "macro", "claymation",
)  # fmt: skip
SMALL_FLAGS = (
    "--s 250", "--s 50", "--c 10", "--seed 6894", "--no text", "--no boy --no car , dog", "--q 2",
    "--w 200", "--stop 80", "--fast", "--relax", "--iw 1.5", "--repeat 2",
)  # fmt: skip
VERSIONS = (
    ("--v 5.2", 30), ("--v 5.1", 18), ("", 14), ("--v 5", 9), ("--v 4", 6), ("--v 6.0", 9),
    ("--niji 5", 5), ("--niji 5 --style cute", 2), ("--niji", 1), ("--version 5.2", 2),
    ("—v 5.1", 1), ("--style raw --v 5.2", 2), ("--style raw --v 5.1", 1), ("--tile --v 5.2", 1),
)  # fmt: skip
ASPECTS = ("", "", "", "--ar 3:2", "--ar 2:3", "--ar 16:9", "--ar 9:16", "--aspect 4:5")
RAW_ENDINGS = (
    "--style raw --v 5.2", "--v 5.2 --style raw", "--style raw --v 5.1", "--v 5.1 --style raw",
    "--raw --v 5.2", "--style raw --s 250 --v 5.2", "--v 5.2 --style raw --c 10",
    "—style raw —v 5.2", "--style raw", "--v 5.2 --style raw --no text, frame",
)  # fmt: skip
RAW = "--style raw --v 5.2"
IMAGE_PROMPT = "<https://s.mj.run/{}>"

# --- what the bot says ------------------------------------------------------------------------

UPSCALED = "Image #{index} {user} "
# (how many of 20,500, what stands before the prompt, what after it, with a link)
JOBS = (
    (5600, "", "{user} ({mode})", True),
    (300, "", "{user} (Open on website for full quality) ({mode})", True),
    (2300, "", "Variations by {user} ({mode})", True),
    (500, "", "Variations (Strong) by {user} ({mode})", True),
    (80, "", "Variations (Strong) by {user} [(Open on website for full quality)]"
             "(<https://midjourney.com/jobs/{job}>) ({mode})", True),
    (400, "", "Variations (Subtle) by {user} ({mode})", True),
    (330, "", "Remix by {user} ({mode})", True),
    (120, "", "Remix (Subtle) by {user} ({mode})", True),
    (60, "", "Remaster by {user} ({mode})", True),
    (420, "", "Zoom Out by {user} ({mode})", True),
    (70, "", "Pan Left by {user} ({mode})", True),
    (70, "", "Pan Right by {user} ({mode})", True),
    (40, "", "Pan Up by {user} ({mode})", True),
    (40, "", "Pan Down by {user} ({mode})", True),
    (800, "", "{user} ({percent}%) ({mode})", True),
    (350, "", "{user} (Waiting to start)", False),
    (120, "", "{user} (Stopped)", True),
    (60, "", "{user} (paused) ({mode})", True),
    (60, "", "Upscaling by {user} ({percent}%) ({mode})", False),
    (160, "Making variations for image #{index} with prompt ", "{user} (Waiting to start)", False),
    (160, "Upscaling image #{index} with ", "{user} (Waiting to start)", False),
    (70, "Rerolling ", "{user} (Waiting to start)", False),
)  # fmt: skip
# upscales of prompts without raw, and those that lack their link
UPSCALES = (
    (3600, "", UPSCALED, True),
    (420, "", "Upscaled by {user} ({mode})", True),
    (130, "", "Upscaled (Subtle) by {user} ({mode})", True),
    (70, "", "Upscaled (2x) by {user} ({mode})", True),
    (50, "", "Upscaled (4x) by {user} (Open on website for full quality) ({mode})", True),
    (200, "", UPSCALED, False),
)
# raw upscales that the filter drops, each for another reason: (how many, the prompt)
RAW_FAULTS = (
    (330, "{prompt} --style raw --v 6.0"),
    (40, "{prompt} --v 5 --style raw"),
    (90, "{link} {prompt} " + RAW),
    (70, "{prompt}::2 {style}::1 " + RAW),
    (60, "{prompt} --tile " + RAW),
    (60, "{prompt} --ar 3:1 " + RAW),
    (25, "{prompt} --ar wide " + RAW),
    (60, "{word} " + RAW),
    (30, "{prompt}, nude " + RAW),
    (25, "--style raw"),
    (20, "{prompt} --v5 " + RAW),
    (15, "{prompt} as {user} did " + RAW),
)
CUT_MESSAGES = 36
REPEATED_MESSAGES = 60  # the same user upscales the same caption again
DEAD_MESSAGES = 20  # upscaled, raw, and their link leads nowhere
BLENDS = 60
DELETED_USER_MESSAGES = 160
CHATTER = (
    "There are too many images being made right now. Please try again in a moment.",
    "{user} Job queued! Please wait for other jobs to finish first",
    "/imagine prompt: {prompt}",
    "Action needed to continue: please accept our terms of service, {user}",
    "{user} nice one!\nwhich flags?",
    "**{prompt}**",
    "**{prompt}** - ",
    "**{prompt} - {user} ({mode})",
    "",
)
CHATTER_FRACTION = 0.015
MODES = ("fast", "fast", "relaxed", "turbo", "fast, stealth", "metered, fast")
HTML_PAGE = b"<!DOCTYPE html>\n<html><body>This content is no longer available.</body></html>\n"
FIRST_NAMES = (
    "Pixel", "Quiet", "Lemon", "Nova", "Paper", "Velvet", "Tin", "Moss", "Solar", "Rusty", "Ink",
    "Copper", "Misty", "Bold", "Tiny", "Amber", "Cloud", "Static", "Ivory", "Wild",
)  # fmt: skip
LAST_NAMES = (
    "Otter", "Fern", "Lantern", "Badger", "Comet", "Kettle", "Sparrow", "Harbor", "Pickle", "Moth",
    "Anvil", "Ferret", "Canyon", "Biscuit", "Raven", "Tulip", "Walrus", "Cricket", "Maple", "Gecko",
)  # fmt: skip
NAME_ENDINGS = ("", "", "", "", "", "_art", " (AI)", "77", " 猫", "ова")


def make_users(rng: random.Random) -> list[User]:
    """Invent users, the most eager first."""
    names = [f"{first}{last}" for first in FIRST_NAMES for last in LAST_NAMES]
    rng.shuffle(names)
    users = []
    for rank, name in enumerate(names[:USERS], start=1):
        full_name = name + rng.choice(NAME_ENDINGS)
        fake_id = rng.randrange(10**17, 10**18)
        mention = f"<@{fake_id}>" if rng.random() < 0.75 else f"@{full_name}"
        users.append(User(full_name, mention, rank**-ZIPF_EXPONENT))
    return users


def shared_out(total: int, weights: list[float]) -> list[int]:
    """Split a whole number in proportion to weights, by largest remainders."""
    exact = [total * weight / sum(weights) for weight in weights]
    shares = [math.floor(share) for share in exact]
    by_remainder = sorted(range(len(exact)), key=lambda i: shares[i] - exact[i])
    for i in by_remainder[: total - sum(shares)]:
        shares[i] += 1
    return shares


class Writer:
    """Writes drafts as one seeded person after another would."""

    def __init__(self, rng: random.Random) -> None:
        """Invent the users that the drafts name."""
        self.rng = rng
        self.users = make_users(rng)
        self.weights = [user.weight for user in self.users]

    def anyone(self, but: User | None = None) -> User:
        """Draw a user by weight."""
        while (user := self.rng.choices(self.users, self.weights)[0]) is but:
            pass
        return user

    def prompt(self) -> str:
        """Write a prompt's text without flags."""
        styles = self.rng.sample(STYLES, self.rng.randrange(3))
        return ", ".join([self.rng.choice(SUBJECTS), *styles])

    def flags(self, versions: tuple[tuple[str, int], ...] = VERSIONS) -> str:
        """Write a prompt's flags, the version among them."""
        texts, weights = zip(*versions, strict=True)
        flags = [self.rng.choice(ASPECTS), self.rng.choices(texts, weights)[0]]
        if self.rng.random() < 0.3:
            flags.append(self.rng.choice(SMALL_FLAGS))
        self.rng.shuffle(flags)
        return " ".join(flag for flag in flags if flag)

    def filled(self, template: str, user: User, prompt: str = "") -> str:
        """Fill a template's braces; users' own braces stay as they are."""
        rng = self.rng
        values = {
            "user": user.mention,
            "prompt": prompt or self.prompt(),
            "mode": rng.choice(MODES),
            "index": rng.randrange(1, 5),
            "percent": rng.randrange(100),
            "job": uuid.UUID(int=rng.getrandbits(128), version=4),
            "link": IMAGE_PROMPT.format("".join(rng.choices("abcdefGHIJKL123456789", k=11))),
            "style": rng.choice(STYLES),
            "word": rng.choice(("cat", "ox", "ram", "sun")),
        }
        return re.sub(r"\{(\w+)\}", lambda found: str(values[found[1]]), template)

    def job(
        self,
        user: User,
        prompt: str,
        after: str,
        *,
        before: str = "",
        linked: bool = True,
        picture: bytes | None = None,
    ) -> Draft:
        """Write what the bot posts about one prompt of one user."""
        words = f"{user.name}_{prompt.split(' --')[0]}"
        name = re.sub(r"[^A-Za-z0-9]+", "_", words)[:36].strip("_") or "user"
        job_id = uuid.UUID(int=self.rng.getrandbits(128), version=4)
        return Draft(
            content=self.filled(before, user) + f"**{prompt}** - " + self.filled(after, user),
            name=f"{name}_{job_id}" if linked else "",
            picture=picture,
        )

    def retyped(self, caption: str) -> str:
        """Type a caption as people do; its normalised form stays."""
        spaced = caption.split(" ", 1)
        ways = (
            (60, caption),
            (20, caption.capitalize()),
            (7, caption.title().replace("’S", "’s")),
            (3, caption.upper()),
            (4, "  ".join(spaced)),
            (2, "\n".join(spaced)),
            (4, caption + self.rng.choice((".", ",", "!"))),
        )
        text = self.rng.choices([text for _, text in ways], [weight for weight, _ in ways])[0]
        return text if normalised_caption(text) == normalised_caption(caption) else caption


# --- the pairs that the recipe trains on ------------------------------------------------------


def captions_by_concept(pictures: pa.Table) -> dict[str, str]:
    """Plan the caption of each concept that has a picture without skin tone.

    Raises:
        ValueError: if two concepts would share a caption, and so a place in the split.
    """
    captions: dict[str, str] = {}
    taken: dict[str, str] = {}
    for row in pictures.select(["concept", "label", "tags", "tone"]).to_pylist():
        if row["tone"]:
            continue
        caption = planned_caption(row["label"], row["tags"])
        captions[row["concept"]] = caption
        other = taken.setdefault(normalised_caption(caption), row["concept"])
        if other != row["concept"]:
            raise ValueError(
                f"concepts {other} and {row['concept']} both get the caption {caption!r}; "
                "planned_caption must tell them apart"
            )
    return captions


def encoded(lossless: bytes, aspect: str) -> bytes:
    """Encode a picture as the sample ships it, on a wider or taller canvas where asked."""
    with Image.open(io.BytesIO(lossless)) as image:
        picture = image.convert("RGB").resize((SIDE_PX, SIDE_PX), Image.Resampling.LANCZOS)
    size = {"3:2": (WIDE_PX, SIDE_PX), "2:3": (SIDE_PX, WIDE_PX)}.get(aspect, picture.size)
    canvas = Image.new("RGB", size, "white")
    canvas.paste(picture, ((size[0] - SIDE_PX) // 2, (size[1] - SIDE_PX) // 2))
    file = io.BytesIO()
    canvas.save(file, "WEBP", quality=WEBP_QUALITY, method=6)
    return file.getvalue()


def pair_drafts(writer: Writer, pictures: pa.Table) -> Iterator[Draft]:
    """Write the messages whose pictures exist, and those that only look as if theirs did."""
    rng = writer.rng
    captions = captions_by_concept(pictures)
    images = {
        (row["concept"], row["tone"]): row["image"]
        for row in pictures.select(["concept", "tone", "image"]).to_pylist()
    }
    concepts = sorted(captions)
    rng.shuffle(concepts)
    shares = shared_out(len(concepts), writer.weights)
    owners = [u for user, n in zip(writer.users, shares, strict=True) for u in [user] * n]

    def upscaled(user: User, concept: str, picture: bytes | None, aspect: str = "") -> Draft:
        flags = f"--ar {aspect} " * bool(aspect) + rng.choice(RAW_ENDINGS)
        return writer.job(
            user, f"{writer.retyped(captions[concept])} {flags}", UPSCALED, picture=picture
        )

    for user, concept in zip(owners, concepts, strict=True):
        aspect = rng.choice(("3:2", "2:3")) if rng.random() < 0.1 else ""
        yield upscaled(user, concept, encoded(images[concept, 0], aspect), aspect)

    owner_of = dict(zip(concepts, owners, strict=True))
    toned = sorted(key for key in images if key[1] and key[0] in captions)
    rng.shuffle(toned)
    second = dict(toned)  # one tone of each
    for concept in sorted(second)[:SECOND_MESSAGES]:
        other = writer.anyone(but=owner_of[concept])
        yield upscaled(other, concept, encoded(images[concept, second[concept]], ""))

    # the faults take concepts without a second message, so that their users are new to the caption
    spare = [concept for concept in concepts if concept not in second]
    dead = spare[: DEAD_MESSAGES + 2]
    whole = encoded(images[dead[0], 0], "")
    for concept, fault in zip(dead, (whole[: len(whole) // 2], HTML_PAGE), strict=False):
        eager = next(user for user in writer.users if user is not owner_of[concept])
        yield upscaled(eager, concept, fault)  # the filter keeps the most eager users in any case
    for concept in dead[2:]:
        yield upscaled(writer.anyone(but=owner_of[concept]), concept, None)


# --- all the rest -----------------------------------------------------------------------------


def with_repeats(drafts: list[Draft], writer: Writer) -> list[Draft]:
    """Let users upscale a picture's prompt once more, some time after they first did."""
    pairs = [i for i, draft in enumerate(drafts) if draft.picture]
    repeated = writer.rng.sample(pairs, REPEATED_MESSAGES)
    later: defaultdict[int, list[Draft]] = defaultdict(list)
    for i in sorted(repeated):
        copy = replace(drafts[i], name=drafts[i].name[:-4] + "beef", picture=None)
        later[writer.rng.randrange(i, len(drafts))].append(copy)
    return [each for i, draft in enumerate(drafts) for each in (draft, *later[i])]


def job_drafts(writer: Writer, messages: int) -> Iterator[Draft]:
    """Write `messages` grids, variations and the like, and upscales without raw."""
    not_raw = tuple(choice for choice in VERSIONS if "raw" not in choice[0])
    kinds = [(VERSIONS, kind) for kind in JOBS] + [(not_raw, kind) for kind in UPSCALES]
    shares = shared_out(messages, [float(count) for _, (count, *_) in kinds])
    for share, (versions, (_, before, after, linked)) in zip(shares, kinds, strict=True):
        for _ in range(share):
            prompt = f"{writer.prompt()} {writer.flags(versions)}".strip()
            yield writer.job(writer.anyone(), prompt, after, before=before, linked=linked)


def fault_drafts(writer: Writer) -> Iterator[Draft]:
    """Write upscales that look like pairs and that the filter drops, by several reasons."""
    for count, template in RAW_FAULTS:
        for _ in range(count):
            user = writer.anyone()
            yield writer.job(user, writer.filled(template, user), UPSCALED)
    for _ in range(CUT_MESSAGES):
        text = ", ".join(writer.prompt() for _ in range(60))
        yield writer.job(writer.anyone(), text[:CUT_CHARS] + "…", UPSCALED)
    for _ in range(BLENDS):
        yield writer.job(writer.anyone(), "", writer.rng.choice((UPSCALED, "{user} ({mode})")))
    for _ in range(DELETED_USER_MESSAGES):
        yield writer.job(User("user", "@Unknown", 0), f"{writer.prompt()} {RAW}", UPSCALED)


def chatter_drafts(writer: Writer, messages: int) -> Iterator[Draft]:
    """Write what is no generation at all."""
    for i in range(messages):
        yield Draft(content=writer.filled(CHATTER[i % len(CHATTER)], writer.anyone()))


# --- files ------------------------------------------------------------------------------------


def snowflake(moment: datetime, rng: random.Random) -> int:
    """Make an id as Discord does: milliseconds since its epoch, then 22 bits."""
    return (moment - DISCORD_EPOCH) // timedelta(milliseconds=1) << 22 | rng.getrandbits(22)


def of_its_time(content: str, moment: datetime) -> str:
    """Take an older version where the one named was not out yet: 5.1 for 5.2, 5 for 6.0."""
    for since, version, before in NEW_VERSIONS:
        if moment < since:
            content = re.sub(rf"(v|version) {re.escape(version)}\b", rf"\1 {before}", content)
    return content


def link_to(draft: Draft, moment: datetime, rng: random.Random) -> str:
    """Give a draft's attachment its address, signed in later months."""
    path = f"{rng.choice(CHANNELS)}/{snowflake(moment, rng)}/{draft.name}.webp"
    link = f"https://cdn.discordapp.com/attachments/{path}"
    if moment >= SIGNED_FROM:
        issued = int(moment.timestamp())
        expires = issued + 14 * 24 * 3600
        link += f"?ex={expires:x}&is={issued:x}&hm={rng.getrandbits(256):064x}&"
    return link


def mirror_path(link: str) -> Path:
    """Say where a mirror keeps what a link points to: the path of its URL, without the query."""
    return Path(link.split("?")[0].removeprefix("https://cdn.discordapp.com/"))


def write_sample(drafts: list[Draft], out: Path, rng: random.Random) -> None:
    """Date the drafts in their order and write the CSV and the mirror."""
    step = (LAST_DAY - FIRST_DAY) / len(drafts)
    shutil.rmtree(out / "cdn", ignore_errors=True)
    with (
        replacing(out / EXPORT) as scratch,
        scratch.open("wb") as raw,
        gzip.GzipFile(filename="", fileobj=raw, mode="wb", mtime=0) as packed,  # no clock, no path
        io.TextIOWrapper(packed, encoding="utf-8", newline="") as file,
    ):
        file.write(",".join(HEADER) + "\n")
        rows = csv.writer(file, quoting=csv.QUOTE_ALL, lineterminator="\n")
        for i, draft in enumerate(drafts):
            moment = FIRST_DAY + step * (i + rng.random())
            bot = NIJI_BOT if "--niji" in draft.content else BOT
            link = link_to(draft, moment, rng) if draft.name else ""
            if draft.picture is not None:
                path = out / "cdn" / mirror_path(link)
                path.parent.mkdir(parents=True)
                path.write_bytes(draft.picture)
            date = moment.strftime("%Y-%m-%dT%H:%M:%S.%f0+00:00")  # seven digits, as .NET writes
            reactions = f"❤️ ({rng.randrange(1, 9)})" if rng.random() < 0.02 else ""
            rows.writerow((*bot, date, of_its_time(draft.content, moment), link, reactions))


def make_export(pictures: pa.Table, out: Path, seed: int, messages: int = MESSAGES) -> Counter[str]:
    """Write the sample under `out`; count what it holds."""
    rng = random.Random(seed)
    writer = Writer(rng)
    fluent = pictures.filter(pc.equal(pictures["style"], STYLE))
    drafts = [*pair_drafts(writer, fluent), *fault_drafts(writer)]
    drafts += chatter_drafts(writer, round(CHATTER_FRACTION * messages))
    drafts += job_drafts(writer, messages - len(drafts) - REPEATED_MESSAGES)
    rng.shuffle(drafts)
    drafts = with_repeats(drafts, writer)
    write_sample(drafts, out, rng)
    return Counter(
        messages=len(drafts),
        pictures=sum(draft.picture is not None for draft in drafts),
        picture_bytes=sum(len(draft.picture or b"") for draft in drafts),
    )


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pictures", type=Path, required=True, metavar="FILE")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--seed", type=int, default=555)
    options = parser.parse_args()
    counts = make_export(pq.read_table(options.pictures), options.out, options.seed)
    print(*(f"{count} {name}" for name, count in counts.items()), sep=", ")


if __name__ == "__main__":
    main()
