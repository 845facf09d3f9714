"""`rlsys export`: a run's model as a folder of its own, with its form and a model card; and a push to the hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from launch.console import UserError, only_json, print_text, to_stderr, to_stdout
from launch.options import AsJson


def export(
    model: Annotated[str, typer.Argument(metavar="RUN[@WHICH]", help="Run folder; @best, @cold_start or @step_10 chooses a checkpoint.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="New folder for the model.")],
    push: Annotated[str | None, typer.Option("--push", metavar="OWNER/NAME", help="Also upload it to the Hugging Face hub.")] = None,
    public: Annotated[bool, typer.Option("--public", help="With --push: make a new repository public. Default: private.")] = False,
    as_json: AsJson = False,
) -> None:
    """Copy a run's model into a folder that is complete by itself: weights, tokenizer, rlsys.json and a model card, README.md.

    rlsys.json holds the template, the lengths and the score range of the training, so that `rlsys judge --model DIR` asks as the run did.
    The card has the held-out results of the run. --push uploads the folder with the token of `hf auth login` or $HF_TOKEN.

    Example: rlsys export runs/quickstart@best --output judge
    """
    from rlsys.io.export import export_model

    with only_json(as_json) as write_json:
        if public and push is None:
            raise UserError("--public: only with --push OWNER/NAME.")
        files = export_model(model, output)
        size = sum((output / name).stat().st_size for name in files)
        print_text(to_stderr() if as_json else to_stdout(), f"{output}: {', '.join(files)} ({size / 1e6:,.1f} MB)")
        url = None if push is None else push_folder(output, push, public)
        if url is not None:
            print_text(to_stderr() if as_json else to_stdout(), f"pushed to {url}")
        write_json({"output": str(output), "files": files, "bytes": size, "url": url})


def push_folder(folder: Path, name: str, public: bool) -> str:
    """Upload `folder` to the repository `name` of the hub, which is created if it is not there; returns its URL.

    Raises:
        UserError: the hub refuses or cannot be reached; the message gives the reason.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError

    from rlsys.system.environment_errors import describe_environment_error

    api = HfApi()
    try:
        url = api.create_repo(name, private=not public, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=folder, commit_message="Export from rlsys")
        return str(url)
    except Exception as error:  # of the HTTP client that huggingface_hub uses, which changes with its version
        described = str(error) if isinstance(error, HFValidationError) else describe_environment_error(error)
        if described is None:
            raise
        reason = " ".join(described.split())[:300].rstrip(".")
        raise UserError(f"--push {name}: {reason}. The model is in {folder}; `hf upload {name} {folder}` uploads it, too.") from error
