"""What is opened: no format whose decoder starts a program, or follows a name to another file."""

from __future__ import annotations

PICTURES = ("BMP", "GIF", "JPEG", "PNG", "PPM", "WEBP")
"""Not EPS, which Pillow hands to Ghostscript."""

CLIPS = {
    # not playlists (hls, concat, dash): they name other files and addresses
    "format_whitelist": "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,flv,gif,mpeg,mpegts,ogg",
    "protocol_whitelist": "file",
}
"""Options of FFmpeg when it opens a file."""

MAX_FRAMES = 200_000
"""Of a clip, whose rate may be made up: 600 seconds at 240 a second are 144,000."""
