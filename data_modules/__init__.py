"""LightningDataModules that stream preference examples, and the sources they stream from.

Importing the classes here is what lets the command line find them by their short names.
"""

from data_modules.base import PreferenceDataModule
from data_modules.cache import MediaCache
from data_modules.caption import CaptionPreferenceDataModule
from data_modules.mixture import Mixture
from data_modules.multimodal import MultimodalPreferenceDataModule
from data_modules.report import DataReport
from data_modules.sources import Rows, Source
from data_modules.text import TextPreferenceDataModule
from data_modules.urls import Urls
from data_modules.world import World

__all__ = [
    "CaptionPreferenceDataModule",
    "DataReport",
    "MediaCache",
    "Mixture",
    "MultimodalPreferenceDataModule",
    "PreferenceDataModule",
    "Rows",
    "Source",
    "TextPreferenceDataModule",
    "Urls",
    "World",
]
