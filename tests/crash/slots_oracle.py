"""The oracle of `log_maker.two_slots` as a command: IMAGE ACKNOWLEDGED [torn]."""

import sys
from pathlib import Path

from log_maker import judge_slots

image, acknowledged, *kind = sys.argv[1:]
count = len([name for name in acknowledged.split(",") if name])
torn = kind == ["torn"]
said = judge_slots(Path(image).read_bytes(), count, sectors=1 + torn, checksum=not torn)
if said:
    print(said)
    sys.exit(1)
