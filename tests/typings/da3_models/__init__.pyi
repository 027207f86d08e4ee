# setup.cfg installs ``models`` as ``da3_models``; a type checker does not see that renaming.
from models import *  # noqa: F403  (the same module by its installed name)
from models import efficientnet_lite0 as efficientnet_lite0
from models import mobilenet_v2 as mobilenet_v2
from models import resnet20 as resnet20
from models import resnet26 as resnet26
from models import resnet50 as resnet50
