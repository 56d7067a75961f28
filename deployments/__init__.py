"""What a person starts: a farm on this machine, deployments, work pools, images, the demo.

`FILES` is the folder of this sub-package. It holds, also in an installed wheel:

    prefect.yaml         the deployments, for `prefect deploy --all --prefect-file`
    automations.yaml     the automations, for `prefect automation create --from-file`
    pools/*.json         base job templates, for `prefect work-pool create --base-job-template`
    docker/ http/ lambda/  images, and workers that render chunks elsewhere
    kubernetes/          rights, and values for the Helm chart of Prefect's worker
    demo/                a film whose chunks ffmpeg alone renders
"""

from pathlib import Path

FILES = Path(__file__).resolve().parent
