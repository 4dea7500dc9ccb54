"""Recipes: what learns and how. One class of settings per network and per method, every field with its default and its meaning."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt, field_validator

from tomoray.config import Settings

Fraction = Annotated[float, Field(ge=0, le=1)]


class AsymmetricUNetSettings(Settings):
    """SemiETPicker's network: a residual encoder and a decoder that stops at half resolution."""

    name: Literal["asymmetric_unet"] = Field("asymmetric_unet", description="architecture: asymmetric_unet, fpn, vnet, deepfinder or resunet")
    width: Annotated[int, Field(ge=2, multiple_of=2)] = Field(64, description="channels of the first stage; 64 is the published network")
    blocks: tuple[PositiveInt, ...] = Field((3, 4, 6, 3), min_length=1, description="residual blocks per stage; (3, 4, 6, 3) is ResNet-34")


class FPNSettings(Settings):
    """A feature pyramid on the same encoder."""

    name: Literal["fpn"] = Field("fpn", description="architecture")
    width: Annotated[int, Field(ge=2, multiple_of=2)] = Field(64, description="channels of the first stage, and of every level")
    blocks: tuple[PositiveInt, ...] = Field((3, 4, 6, 3), min_length=1, description="residual blocks per stage; (3, 4, 6, 3) is ResNet-34")


class VNetSettings(Settings):
    """V-Net as MONAI has it."""

    name: Literal["vnet"] = Field("vnet", description="architecture")


class DeepFinderSettings(Settings):
    """DeepFinder's U-Net, at full resolution."""

    name: Literal["deepfinder"] = Field("deepfinder", description="architecture")


class ResUNetSettings(Settings):
    """TomoPicker's residual U-Net, at full resolution."""

    name: Literal["resunet"] = Field("resunet", description="architecture")
    width: PositiveInt = Field(32, description="channels at full resolution, which double at each further level")
    levels: PositiveInt = Field(4, description="levels; TomoPicker has 4 for crops of 32 voxels, 3 for 16 or 24")


NetworkSettings = Annotated[AsymmetricUNetSettings | FPNSettings | VNetSettings | DeepFinderSettings | ResUNetSettings, Field(discriminator="name")]


class SupervisedSettings(Settings):
    """Heat-map regression on labelled crops."""

    name: Literal["supervised"] = Field("supervised", description="method")
    background_weight: PositiveFloat = Field(4.0, description="lambda of the reweighted squared error")
    reduce: Literal["joint", "per_class"] = Field("joint", description="normalise the loss over all classes, or per class")
    known_radii: Annotated[float, Field(ge=0)] = Field(
        0.0, description="where only some particles are marked: cells further than so many radii from these do not count; 0: all count"
    )
    intensity_strength: Annotated[float, Field(ge=0)] = Field(1.0, description="size of intensity augmentations")


class KaggleCESettings(Settings):
    """Cross-entropy on single cells, as in the solution that won the CZII challenge."""

    name: Literal["kaggle_ce"] = Field("kaggle_ce", description="method")
    class_weight: PositiveFloat = Field(256.0, description="how much more a particle's cell weighs than one of background")
    mixup: bool = Field(True, description="blend crops of a batch, and their targets alike")
    intensity_strength: Annotated[float, Field(ge=0)] = Field(0.0, description="size of intensity augmentations; the recipe has none")


class SegmentationSettings(Settings):
    """Segmentation into spheres, picked by connected components, as in DeepFinder."""

    name: Literal["segmentation"] = Field("segmentation", description="method")
    radius_fraction: PositiveFloat = Field(0.5, description="radius of the spheres in radii of the particle; with 1 touching ones merge")
    cross_entropy_weight: Annotated[float, Field(ge=0)] = Field(0.0, description="weight of a cross-entropy beside the Dice loss")
    intensity_strength: Annotated[float, Field(ge=0)] = Field(1.0, description="size of intensity augmentations")


class TomoPickerSettings(Settings):
    """Learning from a few marked particles and how many there are roughly, as in TomoPicker."""

    name: Literal["tomopicker"] = Field("tomopicker", description="method")
    expected_particles: dict[str, PositiveFloat] | None = Field(None, description="class -> roughly how many lie in one tomogram, marked or not")
    risk: Literal["kl", "pu", "pn", "ge_binomial"] = Field("kl", description="what unmarked cells cost; pn takes all of them for background")
    gamma: Literal["code", "paper", "one"] = Field("code", description="weight of marked cells: the authors' code, their paper, or nnPU's own")
    pi_mode: Literal["expected", "observed"] = Field("expected", description="prior of pn: expected share of cells (code) or marked share (paper)")
    kl_direction: Literal["code", "paper"] = Field("code", description="KL(prior || scores) as in the code, or the other way round")
    prior_from: Literal["sum", "union"] = Field("sum", description="share that particles cover: volumes added up, or of their union")
    radius_fraction: PositiveFloat = Field(1.0, description="radius of the marked balls in radii of the particle")
    finder: Literal["greedy", "peaks"] = Field("greedy", description="picks: the highest cell first, or local maxima, fewer of them twice")
    flips_and_turns: bool = Field(False, description="mirror and turn crops")
    intensity_strength: Annotated[float, Field(ge=0)] = Field(0.0, description="size of intensity augmentations; the authors use none")


LabelledSettings = Annotated[SupervisedSettings | KaggleCESettings | SegmentationSettings | TomoPickerSettings, Field(discriminator="name")]


class SemiETPickerSettings(Settings):
    """Teacher-student co-training on labelled and unlabelled crops; start_from names the burn-in."""

    name: Literal["semietpicker"] = Field("semietpicker", description="method")
    supervised: LabelledSettings = Field(SupervisedSettings(), description="the method that it builds on")
    views: Literal[1, 4, 8] = Field(4, description="mirrored views behind a pseudo-label; 4 is the paper's, 1 is Mean Teacher's")
    drop_probability: Fraction = Field(0.0131, description="DropBlock seeds per voxel of the student's unlabelled crops; 0: none, Mean Teacher's")
    consistency_weight: Annotated[float, Field(ge=0)] = Field(1.0, description="weight of the unlabelled term")
    ramp_fraction: Fraction = Field(0.2, description="share of training over which that weight rises")
    ema_rate: Fraction = Field(0.001, description="share of the student that enters the teacher at each step")
    pseudo_mode: Literal["auto", "soft", "floor", "peaks"] = Field(
        "auto", description="pseudo-labels as they are, without haze, or redrawn from peaks; auto: soft for heat maps, else floor"
    )
    pseudo_floor: Fraction = Field(0.1, description="what counts as haze")

    @field_validator("supervised", mode="before")
    @classmethod
    def _supervised_where_not_named(cls, method: Any) -> Any:
        return {"name": "supervised", **method} if isinstance(method, dict) else method


MethodSettings = Annotated[
    SupervisedSettings | KaggleCESettings | SegmentationSettings | TomoPickerSettings | SemiETPickerSettings, Field(discriminator="name")
]
