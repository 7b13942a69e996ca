"""Stems: two words are alike here exactly when they are in Qdrant's engine."""

from __future__ import annotations

from pathlib import Path

import pytest
import qdrant_edge as edge
from qdrant_client import models as m

from generated.qdrant import collections_pb2 as collections
from server.replica import stems
from server.replica.refusal import NotServed
from server.replica.tokens import tokenizer
from tests.replica.edge_engine import Edge

# ruff: noqa: RUF001  Letters of many scripts look like others.

# Forms of a few words in each language: what a stemmer joins, and near misses that it must not join.
FORMS = {
    "arabic": "كتاب الكتاب كتب كاتب مكتبة المكتبات يكتبون كتابة مدرسة المدارس",
    "armenian": "գիրք գրքեր գրքերի գրքերով տուն տներ տան տներում գրող գրողներ",
    "danish": "løbe løber løbende løbet huse huset husene hus venlig venligt venlighed",
    "dutch": "lopen loopt gelopen lichaam lichamelijk lichamelijkheden huizen huis opgingen opgang",
    "english": "run runs running runner ran generously generation general happy happiness happily sky skies dying",
    "finnish": "talo talon talossa taloista talot kirja kirjan kirjoissa kirjasto juosta juoksen",
    "french": "courir courait cours continuellement continuer chevaux cheval majestueuse majesté gâteaux",
    "german": "laufen läuft gelaufen aufeinander häuser haus hauses kategorie kategorischen weiß weiss",
    "greek": "βιβλίο βιβλία βιβλίων σπίτι σπίτια σπιτιού γράφω γράφεις τρέχει τρέχουν",
    "hungarian": "ház házak házban házakból könyv könyvek könyvtár könyvet futott futok",
    "italian": "correre corre correvano abbandonata abbandonati pronuncerà pronunciamento città libri libro",
    "norwegian": "løpe løper løpende husene huset hus vennlig vennligst havneinspektør havnedistrikt",
    "portuguese": "correr correndo correram quilométricas quilômetros boataria botas cidades cidade",
    "romanian": "alerga alergare alergau copil copiii copilărie carte cărți cărților frumoasă frumos",
    "russian": "бегать бегает бегал важная важность новый новая новое ёлка елка зелёный зеленый моём моем",
    "spanish": "correr corriendo corrieron chicharrones chicharrón torneado torneados ciudades ciudad",
    "swedish": "springa springer sprang jaktkarlarne jaktkarl husen huset hus vänlig vänlighet",
    "tamil": "வேலை வேலையை வேலைகளை வேலையாக முறை முறையாக முறைகளை வீட்டில் புத்தகங்கள் மரம் மரங்கள்",
    "turkish": "ev evler evde evlerimizden kitap kitaplar kitabı kitapçı koşmak koşuyor",
}


def test_every_language_of_the_engine_is_here() -> None:
    assert set(FORMS) == set(stems.LANGUAGES.values())
    assert {name.lower() for name in dir(edge.SnowballLanguage) if name[0].isupper()} == set(FORMS)


@pytest.mark.parametrize("language", sorted(FORMS))
def test_words_are_alike_as_in_the_engine(language: str, tmp_path: Path) -> None:
    words = FORMS[language].split()
    engine = Edge(tmp_path / "edge", {"": m.VectorParams(size=1, distance=m.Distance.DOT)})
    engine.upsert([m.PointStruct(id=number, vector=[1.0], payload={"t": word}) for number, word in enumerate(words)])
    theirs = edge.SnowballParams(getattr(edge.SnowballLanguage, language.capitalize()))
    engine.index("t", edge.TextIndexParams(tokenizer=edge.TokenizerType.Word, stemmer=theirs))
    snowball = collections.StemmingAlgorithm(snowball=collections.SnowballParams(language=language))
    # Marks that are no letters cut a word in several tokens.
    cut = tokenizer(collections.TextIndexParams(tokenizer=collections.Word, stemmer=snowball), of_query=False)
    tokens = [set(cut(word)) for word in words]
    assert len(set(map(frozenset, tokens))) < len(words), "nothing was joined"
    for word, wanted in zip(words, tokens, strict=True):
        condition = m.Filter(must=[m.FieldCondition(key="t", match=m.MatchText(text=word))])
        alike = [number for number, held in enumerate(tokens) if wanted <= held]
        assert engine.matching(condition) == sorted(alike, key=str), word
    engine.close()


def test_a_language_goes_by_its_code_too_and_an_unknown_one_is_not_served() -> None:
    by_code, by_name = stems.stemmer("EN"), stems.stemmer("English")
    assert by_code is by_name is not None
    assert stems.stemmer("klingon") is None
    unknown = collections.StemmingAlgorithm(snowball=collections.SnowballParams(language="klingon"))
    with pytest.raises(NotServed, match="klingon"):
        tokenizer(collections.TextIndexParams(stemmer=unknown), of_query=False)
