"""Bytes of the whole file against function error: SkillPack and every peer that installs, on pairs trained here."""
