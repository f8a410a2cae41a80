"""Makes the GIF at the top of the README from a video that `launch.py eval` has recorded.

python launch.py eval RUN --episodes 1 --seed 7 --video films/
python docs/film.py films/NAME.mp4 docs/images/walker.gif
"""

from __future__ import annotations

import argparse
import subprocess
from pathlib import Path

from imageio_ffmpeg import get_ffmpeg_exe  # comes with moviepy

SECONDS, FRAMES_PER_S, WIDTH, COLOURS = 6, 14, 400, 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("film", type=Path)
    parser.add_argument("gif", type=Path)
    parser.add_argument("--begin", type=float, default=2.0, help="seconds of the film to leave out")
    args = parser.parse_args()
    palette = f"split[a][b];[a]palettegen=max_colors={COLOURS}[p];[b][p]paletteuse=dither=none"
    subprocess.run(
        [
            *(get_ffmpeg_exe(), "-loglevel", "error", "-y"),
            *("-ss", str(args.begin), "-t", str(SECONDS), "-i", str(args.film)),
            *("-vf", f"fps={FRAMES_PER_S},scale={WIDTH}:-1:flags=lanczos,{palette}"),
            str(args.gif),
        ],
        check=True,
    )


if __name__ == "__main__":
    main()
