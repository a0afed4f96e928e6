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

#: Type of section to the file with the layout that declares it (`formats.eeprom.layouts`).
LAYOUTS: Final[dict[str, str]] = {
    "beaglebone-cape": "beaglebone-cape.toml",
    "nxp-ccid": "nxp-ccid.toml",
    "nxp-nxid": "nxp-nxid.toml",
    "qsfp": "qsfp.toml",
    "sfp": "sfp.toml",
    "ti-am335x-board": "ti-am335x-board.toml",
    "ti-am6-board": "ti-am6-board.toml",
}

#: The module that reads layouts; it imports construct, and is imported only where one is used.
_LOADING: Final = "formats.eeprom.layouts.loading"

#: Types of which any bytes can be, because nothing marks them (E7).
UNMARKED: Final = frozenset({"intel-nic", "qsfp", "raw", "sfp"})


def built_in_names() -> list[str]:
    """Return the types of sections for which there is a codec here, in their order."""
    return sorted({*MODULES, *LAYOUTS})


def built_in_codec(name: str) -> Codec[Any]:
    """Return the codec of that name.

    Raises:
        KeyError: There is none here.
    """
    if name in LAYOUTS:
        declared: Codec[Any] = importlib.import_module(_LOADING).shipped_layout(LAYOUTS[name])
        return declared
    codec: Codec[Any] = importlib.import_module(MODULES[name]).CODEC
    return codec
