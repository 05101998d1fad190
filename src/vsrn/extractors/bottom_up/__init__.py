"""Regions as the paper has them: bottom-up attention (Anderson et al., CVPR 2018), docs/extractors.md."""
