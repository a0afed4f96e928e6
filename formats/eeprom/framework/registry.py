"""The codecs that are there, by the type of section they are for."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from formats.eeprom.framework.codec import Codec

#: Type of section to the module whose `CODEC` it is; imported when it is asked for.
MODULES: Final[dict[str, str]] = {
    "edid": "formats.eeprom.edid",
    "google-vpd": "formats.eeprom.google_vpd",
    "intel-nic": "formats.eeprom.intel_nic",
    "ipmi-fru": "formats.eeprom.ipmi_fru",
    "keyword-vpd": "formats.eeprom.keyword_vpd",
    "onie-tlv": "formats.eeprom.onie_tlv",
    "pci-vpd": "formats.eeprom.pci_vpd",
    "raw": "formats.eeprom.raw",
    "rpi-hat": "formats.eeprom.rpi_hat",
    "sl28-vpd": "formats.eeprom.sl28_vpd",
    "spd-ddr3": "formats.eeprom.spd_ddr3",
    "spd-ddr4": "formats.eeprom.spd_ddr4",
    "spd-ddr5": "formats.eeprom.spd_ddr5",
    "uboot-env": "formats.eeprom.uboot_env",
    "uboot-env-redundant": "formats.eeprom.uboot_env_redundant",
}

#: Types of which any bytes can be, because nothing marks them (E7).
UNMARKED: Final = frozenset({"intel-nic", "raw"})


def built_in_codec(name: str) -> Codec[Any]:
    """Return the codec of that name.

    Raises:
        KeyError: There is none here.
    """
    codec: Codec[Any] = importlib.import_module(MODULES[name]).CODEC
    return codec
