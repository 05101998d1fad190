"""How much stand-ins help: a rare word of each held-out caption is replaced by a synonym that the model never read.

    python experiments/unknown_words.py ../shared/flickr8k -o runs/unknown-words.json

Of each caption of `val`, the rarest word of `SYNONYMS` is replaced by one of its synonyms, drawn by seed 0. Then
captions are searched for their photos with that word as it was, as `<unk>`, and with 1, 3 or 5 stand-ins of the
synonym. The list was written by hand before any stand-in was looked at. Intervals are of 2,000 resamples of photos.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np
import numpy.typing as npt
import tyro

import vsrn
import vsrn.data.stand_ins
from vsrn.data.annotations import read_karpathy
from vsrn.data.stand_ins import StandIns
from vsrn.data.tokenizer import tokenize
from vsrn.files import write_atomically

Floats = npt.NDArray[np.float32]
RESAMPLES = 2000
# How many stand-ins each way of reading the synonym uses; below 0, the word itself is read.
WAYS = {"the word itself": -1, "<unk>": 0, "1 stand-in": 1, "3 stand-ins": 3, "5 stand-ins": 5}
# A known word and synonyms, or nearest relatives, that flickr8k-small lacks.
SYNONYMS = """\
man:bloke,chap,dude woman:lass,gal people:folk boy:lad girl:lass child:youngster,tot kid:youngster children:youngsters
kids:youngsters toddler:tot puppy:pup,whelp dog:mutt,canine,pooch dogs:hounds,mutts,canines,pooches person:individual
bike:cycle bicycle:cycle motorcycle:chopper car:automobile,sedan truck:lorry,pickup bus:minibus
boat:vessel,dinghy,yacht ocean:seawater sea:seas lake:lagoon river:brook stream:brook creek:brook beach:seaside
shore:seaside,coastline sand:sands snow:slush,powder ice:icicles mountain:alp mountains:summits,alps hill:knoll
cliff:precipice,crag rock:crag rocks:crags grass:turf,pasture lawn:turf field:paddock,prairie forest:grove,thicket
woods:grove,thicket tree:oak,sapling trees:oaks,saplings flowers:blossoms,roses street:avenue,boulevard road:roadway
sidewalk:footpath trail:footpath building:edifice house:cottage,residence home:residence shop:boutique
store:supermarket restaurant:eatery jacket:anorak,blazer coat:overcoat,anorak shirt:blouse,tee shirts:blouses
pants:trousers,slacks jeans:dungarees dress:frock hat:fedora,sombrero shoes:trainers sweater:pullover,cardigan
boots:wellies suit:tuxedo glasses:spectacles,eyeglasses backpack:rucksack,knapsack bag:satchel,rucksack couch:settee
sofa:settee bench:pew chair:armchair bed:mattress blanket:quilt,duvet running:sprinting runs:gallops jumping:vaulting
jumps:vaults,springs leaps:vaults leaping:vaulting walking:strolling,ambling walks:strolls,ambles climbing:scrambling
climbs:scrambles,ascends throwing:hurling throws:hurls sitting:perching sits:perches eating:munching,devouring
eats:munches,devours drinking:sipping,gulping drinks:sips smiling:beaming laughing:giggling,chuckling
crying:weeping,sobbing talking:chatting talks:chats yelling:shouting kissing:smooching hugging:cuddling
fighting:brawling,scuffling holding:grasping,clutching holds:grasps,clutches carrying:lugging,hauling
carries:hauls,lugs pulling:hauling pushing:shoving looking:gazing,peering watching:viewing watches:views
riding:pedaling rides:pedals splashing:sloshing digging:burrowing chasing:pursuing chases:pursues catching:snatching
catches:snatches sleeping:napping,dozing sleeps:naps,dozes standing:upright dancing:waltzing
playing:frolicking,romping performing:executing trick:feat tricks:feats photo:snapshot picture:snapshot
crowd:throng,mob group:cluster couple:twosome team:squad race:contest game:contest happy:joyful,cheerful
happily:joyfully,cheerfully large:enormous,gigantic big:enormous,gigantic huge:enormous,gigantic little:wee tall:lofty
old:ancient elderly:senior young:youthful beautiful:gorgeous,lovely wet:soggy,damp dirty:filthy,grubby
muddy:mucky,boggy colorful:vivid busy:bustling crowded:jammed grassy:verdant red:crimson,scarlet blue:azure
green:emerald,olive yellow:lemon,mustard purple:violet,lavender pink:fuchsia,magenta brown:chestnut,hazel tan:fawn
black:ebony white:ivory gray:slate grey:slate orange:tangerine,apricot gold:gilded ball:sphere stick:twig sticks:twigs
rope:cord,cable toy:plaything toys:playthings frisbee:discus skateboard:longboard fence:hedge gate:turnstile
wall:partition,brickwork window:windowpane door:entrance stairs:stairwell pool:poolside puddle:slush waves:breakers
wave:breaker,swell waterfall:cascade guitar:banjo,ukulele violin:cello,viola drums:bongos drum:bongo
horse:stallion,mare horses:stallions,ponies cow:calf,heifer sheep:lamb,ewe bird:sparrow,gull,parrot
birds:sparrows,gulls cat:feline duck:mallard ducks:mallards fish:trout,salmon bull:ox tiger:leopard,panther
cake:cupcake,pastry coffee:espresso beer:lager,ale bread:loaf fire:blaze,bonfire smoke:fumes cigarette:cigar
umbrella:parasol tent:marquee,teepee flag:pennant flags:pennants phone:smartphone cellphone:smartphone
newspaper:gazette book:novel,paperback policeman:constable police:cops,constable officer:constable soldier:trooper
lady:dame ladies:dames guy:dude,bloke guys:dudes,blokes men:blokes,fellows women:gals,lasses boys:lads girls:lasses
cyclist:pedaler hiker:trekker,rambler hikers:trekkers,ramblers hiking:trekking,rambling hike:trek crouching:squatting
crouches:squats kneeling:genuflecting lying:sprawled,reclining laying:sprawled lays:sprawls celebrating:rejoicing
barking:woofing biting:nibbling bites:nibbles,gnaws chewing:nibbling night:evening day:daytime sunset:sundown,twilight
sunny:sunlit dark:gloomy bright:vivid,dazzling mouth:jaws face:visage hair:locks arms:limbs legs:limbs
hands:palms,fists ground:earth,soil dirt:soil,earth mud:mire,sludge leaves:fronds bushes:shrubbery bush:shrub
log:timber branch:bough branches:boughs market:bazaar park:gardens,parkland playground:schoolyard city:metropolis
town:hamlet village:hamlet football:gridiron wrestling:grappling costume:disguise costumes:disguises uniform:livery
helmet:headgear goggles:eyewear necklace:pendant bracelet:bangle
"""


def main(
    folder: Annotated[Path, tyro.conf.Positional],
    *,
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])],
    photos: int = 1000,
    device: str = "cpu",
) -> None:
    """Measure text-to-image recall and print a line a way.

    Args:
        folder: Flickr8K: dataset_flickr8k.json and images/.
        output: Where to write the numbers.
        photos: How many photos of val.
    """
    model = vsrn.load("flickr8k-small", device)
    known = model.vocabulary.ids
    listed = read_karpathy(folder / "dataset_flickr8k.json")["val"][:photos]
    images = model.encode_images([folder / "images" / photo.id for photo in listed])
    pairs = {word: some.split(",") for word, _, some in (line.partition(":") for line in SYNONYMS.split())}
    draw, owners, sentences = random.Random(0), [], []
    for place, photo in enumerate(listed):
        for caption in photo.captions:
            words = tokenize(caption)
            listed_words = [word for word in words if word in pairs]
            if listed_words:
                rarest = max(listed_words, key=lambda word: known[word])
                sentences.append((words, rarest, draw.choice(pairs[rarest])))
                owners.append(place)
    owner, found = np.array(owners), {}
    for name, count in (
        ("the word itself", -1),
        ("<unk>", 0),
        ("1 stand-in", 1),
        ("3 stand-ins", 3),
        ("5 stand-ins", 5),
    ):
        vsrn.data.stand_ins.STAND_INS = max(count, 1)
        instead = [word if count < 0 else other for _, word, other in sentences]
        texts = [
            " ".join(other if word == old else word for word in words)
            for (words, old, _), other in zip(sentences, instead, strict=True)
        ]
        # Answers are kept by the model, so each way asks it anew.
        model.standing_in = StandIns(model.vocabulary)
        captions = model.encode_captions(texts, stand_ins=count > 0)
        found[name] = recalls(np.asarray(captions @ images.T, np.float32), owner)
        print(f"{name:16}", *(f"R@{k} {low:.1f} {mean:.1f} {high:.1f}" for k, (low, mean, high) in found[name].items()))
    covered = np.mean([bool(model.standing_in.of(other)) for _, _, other in sentences])
    print(f"{len(sentences):,} captions; stand-ins for {covered:.0%} of the synonyms")
    write_atomically(output, msgspec.json.format(msgspec.json.encode(found), indent=1))


def recalls(similarities: Floats, owner: npt.NDArray[np.int64]) -> dict[int, tuple[float, float, float]]:
    """(C, I) similarities, (C,) the photo of each caption -> of k: lower end, recall in %, upper end."""
    own = similarities[np.arange(len(owner)), owner]
    ranks = (similarities > own[:, None]).sum(axis=1)
    count = np.bincount(owner, minlength=similarities.shape[1])
    drawn = np.random.default_rng(0).integers(0, len(count), (RESAMPLES, len(count)))
    found = {}
    for k in (1, 5, 10):
        hits = np.bincount(owner, ranks < k, minlength=len(count))
        spread = 100 * hits[drawn].sum(axis=1) / count[drawn].sum(axis=1)
        low, high = np.percentile(spread, [2.5, 97.5])
        found[k] = (float(low), float(100 * hits.sum() / count.sum()), float(high))
    return found


if __name__ == "__main__":
    tyro.cli(main)
