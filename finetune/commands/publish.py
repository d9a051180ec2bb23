"""`finetune publish`: an exported folder to the model hub."""

import argparse
import sys
from pathlib import Path

from finetune.commands.options import Commands
from finetune.core.console import say

CARD_LINES = 14


def add(commands: Commands) -> None:
    """Adds the command.

    Args:
        commands: Those of `finetune`.
    """
    publish = commands.add_parser("publish", help="send a merged folder, a classifier or an adapter to the model hub")
    publish.add_argument("model", metavar="MODEL", help="a run (its merged checkpoint), or an exported folder")
    publish.add_argument("repository", metavar="OWNER/NAME", help="the repository, made private where there is none")
    publish.add_argument("--public", action="store_true", help="let everybody see it")
    publish.add_argument("--dry_run", action="store_true", help="only list what would be sent; reaches no network")
    publish.add_argument("--overwrite", action="store_true", help="update a repository that holds files")
    publish.add_argument("--revision", metavar="BRANCH", default="main", help="the branch (default: main)")
    publish.add_argument("--message", metavar="TEXT", help="what the commit says")
    publish.add_argument(
        "--no_witness", action="store_true", help="leave out the held-back images and texts, which `verify` needs"
    )
    publish.set_defaults(command=_publish)


def _publish(options: argparse.Namespace) -> None:
    from finetune.export.publish import require_repository, send
    from finetune.export.upload import plan_upload
    from finetune.model.licence import parse_licence
    from finetune.run.folder import RunFolder

    require_repository(options.repository)
    upload = plan_upload(options.model, witness=not options.no_witness)
    size = sum(file.size for file in upload.files) / 1e6
    kind = "public" if options.public else "private"
    verb = "would send" if options.dry_run else "sends"
    say(
        f"{verb} {upload.folder} to {options.repository}, {kind}: {len(upload.files)} files, {size:,.1f} MB", flush=True
    )
    run = RunFolder(Path(options.model).expanduser())
    if upload.folder == run.merged and run.classifier.is_dir():
        say(f"the run has a head: its classifier is {run.classifier}")
    if upload.left_out:
        say(f"leaves out {', '.join(upload.left_out)}")
    if upload.has_witness:
        say("with held-back images and texts, by which `finetune verify` proves it; --no_witness leaves them out")
    if parse_licence(upload.card) is None:
        say("the card states no licence: fill in `license:` at its top")
    if options.dry_run:
        for file in upload.files:
            say(f"  {file.sha256}  {file.size:>13,}  {file.name}")
        say("the card begins:")
        for line in upload.card.splitlines()[:CARD_LINES]:
            say(f"  {line}")
        return
    from huggingface_hub import HfApi
    from huggingface_hub.utils import disable_progress_bars

    if not sys.stderr.isatty():
        disable_progress_bars()
    revision, message = options.revision, options.message
    say(send(upload, options.repository, options.public, options.overwrite, revision, message, HfApi()))
