"""The methods that SkillPack is compared with: one file a family."""
