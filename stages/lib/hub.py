"""Whether a model of the Hugging Face Hub can be had at all: its client asks a hub that is not there again and again, for 24 seconds."""

from __future__ import annotations

PREFIX = "hf-hub:"
CONFIG = "open_clip_config.json"


def lacking(name: str) -> str:
    """Why the model `hf-hub:ORG/NAME` cannot be had, asked once: it is not in the client's cache and the hub does not answer; else "".

    What the hub itself answers (no such model, no permission) is left to whoever loads it, and so is every other name.
    """
    if not name.startswith(PREFIX):
        return ""
    import huggingface_hub as hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    repo = name.removeprefix(PREFIX)
    try:
        if hub.try_to_load_from_cache(repo, CONFIG) is None:
            hub.get_hf_file_metadata(hub.hf_hub_url(repo, CONFIG))
    except (HfHubHTTPError, HFValidationError):
        return ""
    except Exception as err:  # noqa: BLE001 - the HTTP library's own, which is another one in each version of the client
        away = "HF_HUB_OFFLINE is set" if isinstance(err, OfflineModeIsEnabled) else f"{type(err).__name__}: {' '.join(str(err).split())}"
        return f"{repo} is not in the hub's cache, and {hub.constants.ENDPOINT} cannot be asked for it ({away})"
    return ""
