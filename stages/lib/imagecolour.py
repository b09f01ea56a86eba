"""Any Pillow picture to 8-bit sRGB without alpha: palettes, grey, 16 bit, transparency on white, CMYK, colour profiles."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageCms

SPACES = {"RGB": "RGB", "L": "GRAY", "CMYK": "CMYK"}
"""Mode of the pixels -> colour space that a profile must be for."""


class UnsupportedModeError(ValueError):
    """Samples without a defined range (32-bit integers, floats) or of a space that we do not read (Lab)."""


def to_rgb(image: Image.Image) -> Image.Image:
    """The loaded `image` in mode RGB. Raises UnsupportedModeError.

    Transparent pixels are blended with white, as img2dataset does; 16-bit grey is scaled by 255 / 65535; CMYK without a profile is
    converted as (255 - ink) * (255 - black) / 255.
    """
    profile = image.info.get("icc_profile")
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image).astype(np.uint32) * 255 + 32767) // 65535).convert("L")
    if image.mode in ("I", "F", "LAB", "HSV"):
        raise UnsupportedModeError(f"pixels of mode {image.mode}")
    grey = image.mode in ("1", "L", "LA", "La")
    if has_alpha(image):
        image = _on_white(image)
    if grey:
        image = image.convert("L")
    elif image.mode not in ("RGB", "CMYK"):
        image = image.convert("RGB")
    if isinstance(profile, bytes) and (seen := to_srgb(image, profile)) is not None:
        return seen
    return image if image.mode == "RGB" else image.convert("RGB")


def has_alpha(image: Image.Image) -> bool:
    return "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "La", "RGBa")


def _on_white(image: Image.Image) -> Image.Image:
    rgba = image.convert("RGBA")
    out = Image.new("RGB", rgba.size, (255, 255, 255))
    out.paste(rgba, mask=rgba.getchannel("A"))
    return out


def to_srgb(image: Image.Image, profile: bytes) -> Image.Image | None:
    """`image` (RGB, L or CMYK) converted to sRGB by its profile, perceptual intent; None where there is nothing to convert.

    That is: the profile is sRGB by its name, cannot be read, or is for another colour space; browsers take such pixels as they are.
    """
    try:
        source = ImageCms.getOpenProfile(io.BytesIO(profile))
        if source.profile.xcolor_space.strip() != SPACES.get(image.mode) or is_srgb(source):
            return None
        return ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None


def is_srgb(profile: ImageCms.ImageCmsProfile) -> bool:
    """By its description: "sRGB …", or "c2", the small sRGB that Facebook and others write."""
    name = (profile.profile.profile_description or "").strip().lower()
    return "srgb" in name or name in ("c2", "c2ci")
