"""Share results through the remote that DVC's config names, and verify what lies there.

  python -m stages.share pull      fetch what dvc.lock records, hash what arrives, put all in place
  python -m stages.share push      upload it and the records of runs; mend what is amiss there
  python -m stages.share verify    read and hash every object there; mend what is amiss, and take
                                   away what killed pushes left half-copied an hour ago or before

An object is missing or changed there when a disk lost it, a push was killed or a person touched
it. By itself DVC accepts a changed one, and does not push again what it believes to be there.
"""

import argparse
import logging
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import get_args

from aiohttp import ClientPayloadError
from asyncssh import Error as SshError
from botocore.exceptions import BotoCoreError
from dvc.exceptions import DvcException
from dvc.repo import Repo, lock_repo
from dvc_objects.errors import ObjectFormatError
from networkx import topological_sort

from stages.harness.cache_folder import check_writable
from stages.harness.dvc_command import DVC, repro_command
from stages.harness.paths import clear_errors
from stages.storage.check import Depth, Fault, cached_size, find_faults
from stages.storage.conflict import LOCK, refuse_cut_short, refuse_unresolved
from stages.storage.half_pushed import clear_half_pushed
from stages.storage.listed import listed
from stages.storage.place import Place, open_place
from stages.storage.recorded import objects_of_runs, recorded_objects
from stages.storage.repair import repair, spoilt_of
from stages.storage.runs import fetch_runs

UNSAVED = "unsaved files"  # what DVC calls those that it would have to overwrite


def pull(repo: Repo, place: Place) -> None:
    """Fetch what is recorded and the cache lacks, hash it, and put all in place.

    Raises:
        ValueError: if the remote lacks an object or has another under its name; each is named.
            Or if nothing is recorded, or a file here, which nothing else holds, is in the way.
        DvcException: if DVC fails otherwise.
    """
    cache = repo.cache.local
    before = {path.parent.name + path.name for path in Path(cache.path).glob("??/*")}
    hashed = {"remote": {place.name: {"verify": True}}}  # whatever the config says
    failure = None
    try:
        for path in fetch_runs(repo, place.name):
            print(f"{place.address}: runs/{path.name} is no record of a run; not taken")
        repo.fetch(remote=place.name, config=hashed)
    except (DvcException, ObjectFormatError, ClientPayloadError) as error:
        failure = error
    wanted = recorded_objects(repo, [cache, place.objects])
    if not wanted:
        raise ValueError(
            "dvc.lock records no outs, so there is nothing to pull. If others ran the recipe, get "
            "the commit that holds their dvc.lock:\n  git pull\notherwise run it here:\n  make run"
        )
    absent = [recorded for recorded in wanted if cached_size(cache, recorded) is None]
    faults = find_faults(place, cache, absent, "content") if absent else []
    if faults:
        with suppress(ValueError):  # what has arrived, so that stages find their inputs
            put_in_place(repo)
        raise ValueError(
            f"{place.address}: of {len(wanted):,} objects, {len(faults):,} cannot be fetched:\n"
            f"{listed(faults)}\n"
            f"Next: whoever has them in the cache runs `make verify-remote`, which mends the "
            f"remote; or make them anew here:\n  {make_anew(faults, repo)}"
        )
    if failure:
        raise failure
    put_in_place(repo)
    fetched = sum(one.name not in before for one in wanted)
    print(
        f"{place.address}: {len(wanted):,} objects are in place: {fetched:,} fetched, and hashed "
        f"on arrival; {len(wanted) - fetched:,} that the cache had, not read again (`make verify` "
        "reads them)."
    )
    if unrun := sorted({out.stage.addressing for out in repo.index.outs if not out.hash_info}):
        print(f"dvc.lock records no run of {', '.join(unrun)}. Next: make run")


def put_in_place(repo: Repo) -> None:
    """Have DVC put what the cache has where the recipe wants it.

    Raises:
        ValueError: if a file there is neither what is recorded nor in the cache; each is named.
        DvcException: if DVC fails otherwise.
    """
    try:
        repo.checkout(allow_missing=True)  # for stages that nobody ran: no object is absent
    except DvcException as error:
        said, *paths = str(error).splitlines()
        if UNSAVED not in said:
            raise
        names = [Path(path).relative_to(repo.root_dir) for path in paths]
        raise ValueError(
            f"all is fetched, but not put in place, for nothing else holds these files:\n"
            f"{listed(names)}\nA run that was ended may have left them, or you wrote them. Move "
            f"away what you need, then:\n  {DVC} checkout --force --allow-missing"
        ) from error


def push(repo: Repo, place: Place, depth: Depth) -> None:
    """Upload what is recorded and the records of runs, then mend what DVC believed to be there.

    Raises:
        ValueError: if an object to upload is spoilt in the cache, of which DVC would say nothing;
            or if one is sound neither there nor in the remote. Each is named.
        DvcException: if DVC fails otherwise.
    """
    cache = repo.cache.local
    of_runs = [one for one in objects_of_runs(repo) if cached_size(cache, one) is not None]
    wanted = [*recorded_objects(repo, [cache, place.objects]), *of_runs]
    to_upload = [fault.recorded for fault in find_faults(place, cache, wanted, "size")]
    if spoilt := spoilt_of(cache, to_upload):
        are = "hash to other names" if len(spoilt) > 1 else "hashes to another name"
        raise ValueError(
            f"{cache.path}: {len(spoilt):,} of the objects to upload {are}:\n"
            f"{listed([f'{recorded}  [{recorded.name}]' for recorded in spoilt])}\n"
            f"A disk or a program changed them here. Nothing is pushed. Next:\n"
            f"  make verify\n  make push"
        )
    repo.push(remote=place.name, run_cache=True)
    repair(place, cache, find_faults(place, cache, of_runs, depth))
    verify(repo, place, depth)


def verify(repo: Repo, place: Place, depth: Depth) -> None:
    """Compare the remote with what is recorded, and mend what the cache can.

    Raises:
        ValueError: if something remains amiss; each object is named.
    """
    cache = repo.cache.local
    wanted = recorded_objects(repo, [cache, place.objects])
    if not wanted:
        raise ValueError("dvc.lock records no outs; run the recipe first:\n  make run")
    faults = find_faults(place, cache, wanted, depth)
    remaining = repair(place, cache, faults)
    mended = [fault for fault in faults if fault not in remaining]
    for fault in mended:
        print(f"{fault}; mended from the cache")
    again = find_faults(place, cache, [fault.recorded for fault in mended], depth)
    if remaining or again:
        raise ValueError(
            f"{place.address}: of {len(wanted):,} objects, {len(remaining + again):,} remain "
            f"amiss, for the cache here has no sound copy:\n{listed(remaining + again)}\n"
            f"Next: whoever has them in the cache runs `make verify-remote`; or make them anew "
            f"and push:\n  {make_anew(remaining + again, repo)}\n  make push"
        )
    looked = "read and hashed" if depth == "content" else "listed"
    print(
        f"{place.address}: {len(wanted):,} objects {looked}, "
        f"{f'{len(mended):,} of them mended' if mended else 'nothing amiss'}."
    )


def clear(place: Place) -> None:
    """Take away what killed pushes left half-copied in the remote; each is named."""
    cleared, kept = clear_half_pushed(place)
    for path in cleared:
        print(f"half-copied  {path}: a push that was killed left it; taken away")
    for path in kept:
        print(f"half-copied  {path}: a push that was killed left it; only its owner can remove it")


def make_anew(faults: Sequence[Fault], repo: Repo) -> str:
    """Give the commands that make the objects again: of stages in their order, of files added."""
    broken = {fault.recorded.stage for fault in faults}
    in_order = reversed([*topological_sort(repo.index.graph)])  # edges lead to what is needed
    stages = [stage for stage in in_order if stage.addressing in broken]
    made = [stage.addressing for stage in stages if not stage.is_data_source]
    commands = [
        f"{DVC} update {stage.addressing}"
        if stage.is_import
        else f"{DVC} add {stage.outs[0]}  # when you have it again as it was: no stage makes it"
        for stage in stages
        if stage.is_data_source
    ]
    if made:
        commands.append(repro_command(f"--single-item --force {' '.join(made)}"))
    return "\n  ".join(commands)


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m stages.share",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("act", choices=["pull", "push", "verify"])
    parser.add_argument(
        "--remote", metavar="NAME", help="a remote of DVC's config (default: the default one)"
    )
    parser.add_argument(
        "--depth",
        choices=get_args(Depth),
        help="how closely to look: at names and sizes, or at each byte (default: size after a "
        "push, content for verify)",
    )
    return parser.parse_args(argv)


def is_here(repo: Repo, path: object) -> bool:
    """Tell whether a path lies in the working tree or the cache, and not in a remote."""
    if not isinstance(path, str):
        return False
    return any(Path(path).is_relative_to(top) for top in (repo.root_dir, repo.cache.local.path))


def run(options: argparse.Namespace) -> None:
    """Do what a command line asks for.

    Raises:
        ValueError: if it cannot be done; DVC's errors are turned into it.
        OSError: if the remote fails, or this disk.
    """
    refuse_unresolved(Path())
    refuse_cut_short(Path(LOCK))
    if options.act == "pull":
        check_writable(Path())
    try:
        with Repo() as repo:
            place = open_place(repo, options.remote)
            try:
                match options.act:
                    case "pull":
                        with lock_repo(repo):  # also between the steps, that nobody begins a run
                            pull(repo, place)
                    case "push":
                        push(repo, place, options.depth or "size")
                    case _:
                        clear(place)
                        verify(repo, place, options.depth or "content")
            except (BotoCoreError, SshError) as error:  # what is an OSError speaks for itself
                raise place.explained(error) from error
            except PermissionError as error:
                if is_here(repo, error.filename):
                    raise
                raise place.explained(error) from error
    except DvcException as error:
        raise ValueError(f"DVC: {error}") from error


def main() -> None:
    """Run from the command line."""
    options = parse()
    logging.getLogger("dvc_data").setLevel(logging.CRITICAL)  # hashes without names; ours has both
    with clear_errors():
        run(options)


if __name__ == "__main__":
    main()
