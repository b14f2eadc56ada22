"""The picture of the house, held against the code: who may import whom, what stays light, what
nothing is called."""

import ast
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / 'encapnet'

# Arrows point down or sideways, never up. A new module gets a row here, or the test below fails.
ARROWS = {
    # the ground
    'errors': [],
    'files': ['errors'],
    # the mathematics
    'nn.losses': [],
    'nn.capsules': [],
    'nn.baselines': [],
    'nn.fused': [],
    'nn.gradients': [],
    'nn.windows': [],
    'nn.kernels': ['nn.fused', 'nn.gradients'],
    'nn.routing': ['nn.capsules', 'nn.gradients', 'nn.kernels'],
    'nn.transport': ['nn.gradients', 'nn.kernels'],
    'nn.streaming': ['nn.capsules', 'nn.gradients', 'nn.kernels', 'nn.routing', 'nn.windows'],
    'nn.local': ['nn.streaming', 'nn.windows'],
    'nn.untied': ['nn.streaming', 'nn.windows'],
    'nn.layers': [
        'nn.capsules',
        'nn.gradients',
        'nn.local',
        'nn.routing',
        'nn.untied',
        'nn.windows',
    ],
    'nn.feedback': ['nn.layers', 'nn.transport'],
    'nn.networks': ['nn.baselines', 'nn.capsules', 'nn.feedback', 'nn.layers'],
    'nn.trace': ['nn.feedback', 'nn.layers', 'nn.routing', 'nn.transport'],
    # the books
    'study.architectures': [],
    'study.stats': [],
    'study.paper': [],
    'study.pitfalls': [],
    'study.answers': [],
    'study.scatter': [],
    'study.worlds': [],
    'study.scopes': [],
    'study.config': ['errors', 'study.architectures'],
    'study.machine': ['errors'],
    'study.places': ['errors'],
    'study.evidence': ['study.paper'],
    'study.judging': ['study.scatter', 'study.stats'],
    'study.definitions': ['study.scopes'],
    'study.commands': ['study.config'],
    'study.experiments': ['errors', 'study.architectures', 'study.config'],
    'study.profiles': ['errors', 'study.architectures', 'study.config'],
    'study.provenance': ['study.places'],
    'study.calibration': ['study.judging', 'study.scatter', 'study.worlds'],
    'study.freshness': ['errors', 'study.config', 'study.definitions', 'study.scopes'],
    'study.rules': ['study.experiments'],
    'study.planning': [
        'errors',
        'study.architectures',
        'study.config',
        'study.experiments',
        'study.profiles',
    ],
    'study.spending': ['study.calibration', 'study.worlds'],
    'study.statements': ['study.experiments', 'study.paper', 'study.rules'],
    'study.records': [
        'errors',
        'study.answers',
        'study.architectures',
        'study.config',
        'study.experiments',
        'study.freshness',
        'study.planning',
        'study.profiles',
    ],
    'study.claims_fig2': ['study.rules', 'study.statements'],
    'study.claims_table1': ['study.paper', 'study.rules', 'study.statements'],
    'study.claims_table3': ['study.paper', 'study.rules', 'study.statements'],
    'study.claims_table4': ['study.experiments', 'study.paper', 'study.rules', 'study.statements'],
    'study.ledger': [
        'errors',
        'files',
        'study.config',
        'study.experiments',
        'study.places',
        'study.planning',
        'study.profiles',
        'study.records',
    ],
    'study.claims': [
        'study.claims_fig2',
        'study.claims_table1',
        'study.claims_table3',
        'study.claims_table4',
        'study.experiments',
        'study.rules',
        'study.statements',
    ],
    'study.results': [
        'study.answers',
        'study.experiments',
        'study.judging',
        'study.ledger',
        'study.paper',
        'study.profiles',
        'study.records',
        'study.rules',
        'study.scatter',
    ],
    'study.run': [
        'errors',
        'files',
        'study.architectures',
        'study.config',
        'study.freshness',
        'study.ledger',
        'study.places',
        'study.provenance',
        'study.records',
    ],
    'study.gaps': ['study.answers', 'study.judging', 'study.results', 'study.rules', 'study.stats'],
    'study.child': ['errors', 'study.run'],
    'study.gates': ['study.gaps', 'study.results', 'study.rules', 'study.statements'],
    'study.numbers': [
        'study.config',
        'study.gaps',
        'study.paper',
        'study.results',
        'study.rules',
        'study.statements',
    ],
    'study.power': ['study.gaps'],
    'study.certify': [
        'errors',
        'files',
        'study.child',
        'study.config',
        'study.freshness',
        'study.ledger',
        'study.provenance',
        'study.records',
        'study.run',
    ],
    'study.needs': [
        'errors',
        'study.child',
        'study.config',
        'study.experiments',
        'study.planning',
        'study.profiles',
        'study.run',
    ],
    'study.ranks': ['errors', 'study.child', 'study.machine', 'study.run'],
    'study.turns': ['errors', 'study.child', 'study.run'],
    'study.findings': [
        'study.claims',
        'study.config',
        'study.experiments',
        'study.gaps',
        'study.gates',
        'study.judging',
        'study.numbers',
        'study.power',
        'study.results',
        'study.rules',
        'study.statements',
        'study.stats',
    ],
    'study.launch': [
        'errors',
        'study.child',
        'study.config',
        'study.records',
        'study.run',
        'study.turns',
    ],
    'study.verdicts': [
        'study.claims',
        'study.config',
        'study.experiments',
        'study.findings',
        'study.gaps',
        'study.gates',
        'study.ledger',
        'study.numbers',
        'study.profiles',
        'study.records',
        'study.results',
        'study.rules',
        'study.statements',
    ],
    'study.processes': [
        'errors',
        'study.child',
        'study.launch',
        'study.ledger',
        'study.machine',
        'study.profiles',
        'study.run',
    ],
    'study.resolving': [
        'errors',
        'study.claims',
        'study.experiments',
        'study.gaps',
        'study.gates',
        'study.judging',
        'study.results',
        'study.rules',
        'study.statements',
        'study.verdicts',
    ],
    'study.nodes': [
        'errors',
        'files',
        'study.child',
        'study.config',
        'study.freshness',
        'study.needs',
        'study.processes',
        'study.run',
    ],
    'study.sweep': [
        'errors',
        'study.child',
        'study.launch',
        'study.processes',
        'study.records',
        'study.run',
    ],
    'study.cluster': [
        'errors',
        'files',
        'study.child',
        'study.launch',
        'study.machine',
        'study.nodes',
        'study.places',
        'study.processes',
        'study.run',
    ],
    'study.engines': [
        'errors',
        'files',
        'study.cluster',
        'study.launch',
        'study.processes',
        'study.profiles',
        'study.run',
        'study.sweep',
    ],
    # the bridge
    'data.images': [],
    'data.embedded': ['data.images'],
    'data.augmentation': ['errors'],
    'data.decoding': ['errors'],
    'himagenet.boxes': ['errors'],
    'himagenet.workers': ['errors'],
    'data.batches': ['data.augmentation', 'data.images', 'errors'],
    'data.download': ['errors', 'files'],
    'data.registry': ['data.embedded', 'study.config'],
    'himagenet.source': ['errors', 'himagenet.boxes', 'study.places'],
    'training.evaluation': [
        'data.augmentation',
        'data.batches',
        'data.images',
        'study.answers',
        'study.config',
    ],
    'training.schedule': ['data.batches', 'data.images', 'study.config'],
    'himagenet.ranking': ['data.decoding', 'data.download', 'errors', 'study.places'],
    'data.sources': ['data.registry', 'errors', 'study.places'],
    'data.trees': ['data.decoding', 'data.registry', 'errors'],
    'training.devices': ['study.provenance'],
    'himagenet.crops': [
        'errors',
        'files',
        'himagenet.boxes',
        'himagenet.ranking',
        'himagenet.source',
    ],
    'data.archives': ['data.decoding', 'data.registry', 'data.trees', 'errors'],
    'data.cache': ['data.decoding', 'data.registry', 'data.sources', 'data.trees'],
    'data.arrays': [
        'data.archives',
        'data.cache',
        'data.decoding',
        'data.registry',
        'data.sources',
        'data.trees',
        'errors',
        'files',
    ],
    'data.mapped': [
        'data.arrays',
        'data.cache',
        'data.decoding',
        'data.registry',
        'data.sources',
        'data.trees',
        'errors',
        'files',
    ],
    'data.loading': [
        'data.arrays',
        'data.decoding',
        'data.images',
        'data.mapped',
        'data.registry',
        'data.sources',
        'errors',
    ],
    'data.content': [
        'data.cache',
        'data.images',
        'data.loading',
        'data.registry',
        'data.sources',
        'data.trees',
        'errors',
        'files',
    ],
    'data.fetching': ['data.download', 'data.loading', 'data.registry', 'errors', 'study.places'],
    'training.trainer': [
        'data.images',
        'errors',
        'nn.losses',
        'nn.networks',
        'study.architectures',
        'study.config',
        'training.evaluation',
        'training.schedule',
    ],
    'data.listing': [
        'data.archives',
        'data.arrays',
        'data.content',
        'data.loading',
        'data.registry',
        'data.sources',
        'data.trees',
        'errors',
        'study.config',
        'study.places',
    ],
    'himagenet.settings': ['data.content', 'errors', 'himagenet.source'],
    'training.processes': [
        'errors',
        'study.config',
        'study.machine',
        'study.ranks',
        'training.devices',
    ],
    'training.checkpoint': [
        'data.loading',
        'errors',
        'files',
        'study.config',
        'study.freshness',
        'study.provenance',
        'study.records',
        'study.run',
        'training.trainer',
    ],
    'training.diagnostics': ['data.augmentation', 'data.images', 'nn.trace', 'training.trainer'],
    'himagenet.build': [
        'data.loading',
        'errors',
        'files',
        'himagenet.crops',
        'himagenet.ranking',
        'himagenet.settings',
        'himagenet.source',
        'himagenet.workers',
        'study.places',
    ],
    'training.outcome': [
        'data.images',
        'errors',
        'study.config',
        'training.diagnostics',
        'training.evaluation',
        'training.trainer',
    ],
    'training.fit': [
        'data.content',
        'data.images',
        'data.loading',
        'data.registry',
        'errors',
        'files',
        'study.config',
        'study.freshness',
        'study.ledger',
        'study.profiles',
        'study.records',
        'study.run',
        'training.checkpoint',
        'training.devices',
        'training.diagnostics',
        'training.outcome',
        'training.schedule',
        'training.trainer',
    ],
    'training.distributed': [
        'data.batches',
        'data.images',
        'errors',
        'study.config',
        'study.records',
        'study.run',
        'training.checkpoint',
        'training.devices',
        'training.evaluation',
        'training.fit',
        'training.processes',
        'training.schedule',
        'training.trainer',
    ],
    'training.replay': [
        'errors',
        'study.config',
        'study.run',
        'training.devices',
        'training.fit',
        'training.outcome',
        'training.trainer',
    ],
    # the benches
    'bench.clock': ['nn.losses'],
    'bench.transport': ['bench.clock', 'nn.transport', 'study.config'],
    'bench.account': ['nn.losses', 'nn.networks', 'nn.routing'],
    'bench.data': [
        'bench.clock',
        'data.batches',
        'data.images',
        'data.registry',
        'nn.losses',
        'nn.networks',
        'study.config',
    ],
    'bench.capconv': [
        'bench.account',
        'bench.clock',
        'nn.capsules',
        'nn.layers',
        'nn.losses',
        'nn.networks',
        'study.config',
    ],
    'bench.costs': ['bench.account', 'bench.clock', 'nn.networks', 'study.config'],
    'bench.routing': ['bench.account', 'bench.clock', 'nn.capsules', 'nn.routing', 'study.config'],
    'bench.operations': [
        'data.registry',
        'study.architectures',
        'study.config',
        'training.trainer',
    ],
    # the faces
    'show.plots.canvas': [],
    'show.explore.picture': ['errors'],
    'show.page.kernel': ['errors'],
    'show.page.mathml': ['errors'],
    'show.page.notebook': ['errors'],
    'show.page.svg': ['errors'],
    'show.report.seen': ['errors'],
    'show.plots.costs': ['show.plots.canvas'],
    'show.plots.curves': ['show.plots.canvas'],
    'show.plots.errors': ['show.plots.canvas'],
    'show.plots.histograms': ['show.plots.canvas'],
    'show.plots.sheet': ['show.plots.canvas'],
    'show.page.shell': ['errors', 'files'],
    'show.page.markdown': ['show.page.mathml'],
    'show.page.outputs': ['errors', 'show.page.notebook'],
    'show.page.parameters': ['errors', 'show.page.notebook'],
    'show.report.latex': ['errors', 'show.report.seen'],
    'show.tables.departures': ['errors', 'study.places'],
    'show.explore.serve': ['errors', 'show.page.kernel', 'show.page.parameters'],
    'show.page.execute': [
        'errors',
        'files',
        'show.page.kernel',
        'show.page.notebook',
        'show.page.parameters',
    ],
    'show.report.twins': ['files', 'show.report.latex', 'show.report.seen', 'study.places'],
    'show.report.command': ['errors', 'study.profiles', 'study.records'],
    'show.report.style': ['study.config', 'study.records', 'study.stats'],
    'show.tables.complexity': ['show.report.style', 'study.experiments', 'study.paper'],
    'show.tables.fig1_sizes': ['show.report.style', 'study.paper'],
    'show.page.upkeep': [
        'study.experiments',
        'study.freshness',
        'study.ledger',
        'study.profiles',
        'study.records',
    ],
    'show.tables.fig1': ['show.plots.canvas', 'show.plots.sheet', 'show.tables.fig1_sizes'],
    'show.tables.fig3': ['show.plots.canvas', 'show.plots.sheet', 'show.tables.fig1_sizes'],
    'show.page.render': [
        'errors',
        'show.page.markdown',
        'show.page.notebook',
        'show.page.outputs',
        'show.page.shell',
        'show.page.svg',
        'show.page.upkeep',
    ],
    'show.explore.offers': [
        'errors',
        'study.config',
        'study.experiments',
        'study.places',
        'study.run',
    ],
    'show.tables.fig1_capconv': [
        'show.plots.canvas',
        'show.plots.sheet',
        'show.tables.fig1',
        'show.tables.fig1_sizes',
    ],
    'show.page.publish': [
        'show.page.execute',
        'show.page.kernel',
        'show.page.parameters',
        'show.page.render',
    ],
    'show.explore.gathered': [
        'show.explore.offers',
        'study.experiments',
        'study.ledger',
        'study.places',
        'study.records',
        'study.run',
        'study.stats',
    ],
    'show.tables.table2': [
        'nn.networks',
        'show.plots.canvas',
        'show.plots.costs',
        'show.report.style',
        'show.report.twins',
    ],
    'show.explore.equivariance': ['nn.trace'],
    'show.tables.fig1_fig3': [
        'show.report.twins',
        'show.tables.fig1',
        'show.tables.fig1_capconv',
        'show.tables.fig1_sizes',
        'show.tables.fig3',
        'study.profiles',
    ],
    'show.explore.runs': [
        'errors',
        'show.explore.gathered',
        'show.explore.picture',
        'show.plots.canvas',
        'study.places',
    ],
    'show.report.standing': [
        'errors',
        'show.report.command',
        'study.experiments',
        'study.launch',
        'study.ledger',
        'study.needs',
        'study.places',
        'study.profiles',
        'study.records',
        'study.run',
    ],
    'show.explore.votes': [
        'data.loading',
        'errors',
        'nn.networks',
        'nn.trace',
        'show.explore.offers',
        'show.explore.picture',
        'study.config',
        'study.planning',
        'training.checkpoint',
        'training.trainer',
    ],
    'show.explore.capconv': [
        'data.loading',
        'errors',
        'nn.networks',
        'nn.trace',
        'show.explore.offers',
        'show.explore.picture',
        'show.plots.canvas',
        'training.checkpoint',
        'training.diagnostics',
    ],
    'show.explore.transport': [
        'data.loading',
        'errors',
        'nn.trace',
        'nn.transport',
        'show.explore.offers',
        'show.explore.picture',
        'show.plots.canvas',
        'study.architectures',
        'training.checkpoint',
        'training.diagnostics',
        'training.trainer',
    ],
    'show.page.front': [
        'errors',
        'show.page.markdown',
        'show.page.shell',
        'show.page.svg',
        'show.page.upkeep',
        'study.experiments',
        'study.findings',
        'study.profiles',
        'study.verdicts',
    ],
    'show.tables.cards': [
        'show.report.style',
        'study.claims',
        'study.findings',
        'study.gates',
        'study.rules',
        'study.statements',
        'study.verdicts',
    ],
    'show.report.provenance': [
        'show.report.standing',
        'show.report.style',
        'study.freshness',
        'study.provenance',
        'study.records',
    ],
    'show.report.verdict': [
        'show.report.standing',
        'show.report.style',
        'study.claims',
        'study.findings',
        'study.results',
        'study.statements',
    ],
    'show.tables.effects': [
        'errors',
        'show.report.standing',
        'show.report.style',
        'show.tables.departures',
        'study.experiments',
        'study.planning',
        'study.records',
        'study.stats',
    ],
    'show.tables.fig2_frames': ['errors', 'show.report.standing', 'study.records', 'study.stats'],
    'show.tables.softmax_lines': ['show.report.standing', 'study.records'],
    'show.explore.routing': [
        'data.loading',
        'errors',
        'show.explore.equivariance',
        'show.explore.offers',
        'show.explore.picture',
        'show.explore.votes',
        'training.diagnostics',
    ],
    'show.explore.routing_page': [
        'nn.trace',
        'show.explore.equivariance',
        'show.explore.picture',
        'show.explore.votes',
        'show.plots.canvas',
    ],
    'show.report.study': [
        'show.plots.canvas',
        'show.report.provenance',
        'show.report.standing',
        'show.report.style',
        'show.report.twins',
        'study.config',
        'study.profiles',
        'study.stats',
    ],
    'show.tables.claims': [
        'show.report.command',
        'show.report.provenance',
        'show.report.standing',
        'show.report.style',
        'show.report.twins',
        'show.report.verdict',
        'show.tables.cards',
        'study.calibration',
        'study.findings',
        'study.places',
        'study.results',
        'study.verdicts',
    ],
    'show.tables.public_record': [
        'show.plots.canvas',
        'show.report.style',
        'show.report.verdict',
        'study.evidence',
        'study.experiments',
        'study.paper',
    ],
    'show.tables.deviations': [
        'files',
        'show.report.command',
        'show.report.provenance',
        'show.report.standing',
        'show.report.style',
        'show.report.twins',
        'show.report.verdict',
        'show.tables.departures',
        'show.tables.effects',
        'study.places',
    ],
    'show.tables.bench_capconv': [
        'show.plots.canvas',
        'show.plots.costs',
        'show.report.command',
        'show.report.standing',
        'show.report.study',
        'show.report.style',
        'show.report.verdict',
        'study.records',
    ],
    'show.tables.bench_data': [
        'data.augmentation',
        'show.plots.canvas',
        'show.plots.costs',
        'show.report.command',
        'show.report.standing',
        'show.report.study',
        'show.report.style',
        'show.report.verdict',
        'study.config',
        'study.records',
    ],
    'show.tables.bench_routing': [
        'bench.routing',
        'show.plots.canvas',
        'show.plots.costs',
        'show.report.command',
        'show.report.standing',
        'show.report.study',
        'show.report.style',
        'show.report.verdict',
        'study.records',
    ],
    'show.tables.bench_transport': [
        'show.plots.canvas',
        'show.plots.costs',
        'show.report.command',
        'show.report.standing',
        'show.report.study',
        'show.report.style',
        'show.report.verdict',
        'study.records',
    ],
    'show.tables.costs': [
        'bench.operations',
        'errors',
        'show.report.command',
        'show.report.provenance',
        'show.report.standing',
        'show.report.study',
        'show.report.style',
        'study.config',
        'study.experiments',
        'study.planning',
        'study.profiles',
        'study.records',
    ],
    'show.tables.fig2_figure': [
        'show.plots.canvas',
        'show.plots.histograms',
        'show.report.study',
        'show.tables.fig2_frames',
        'study.paper',
    ],
    'show.tables.softmax_axis': [
        'show.plots.canvas',
        'show.plots.curves',
        'show.report.command',
        'show.report.standing',
        'show.report.study',
        'show.report.style',
        'show.report.verdict',
        'show.tables.softmax_lines',
        'study.config',
        'study.experiments',
        'study.profiles',
        'study.stats',
    ],
    'show.tables.table1': [
        'show.plots.canvas',
        'show.plots.curves',
        'show.plots.errors',
        'show.report.command',
        'show.report.standing',
        'show.report.study',
        'show.report.style',
        'show.report.verdict',
        'study.config',
        'study.experiments',
        'study.needs',
        'study.paper',
        'study.profiles',
        'study.records',
        'study.statements',
    ],
    'show.tables.table3': [
        'show.plots.canvas',
        'show.plots.curves',
        'show.plots.errors',
        'show.report.command',
        'show.report.standing',
        'show.report.study',
        'show.report.style',
        'show.report.verdict',
        'study.claims',
        'study.config',
        'study.experiments',
        'study.findings',
        'study.paper',
        'study.profiles',
        'study.results',
        'study.statements',
        'study.stats',
    ],
    'show.tables.table4': [
        'bench.operations',
        'show.report.command',
        'show.report.standing',
        'show.report.study',
        'show.report.style',
        'show.report.verdict',
        'study.experiments',
        'study.needs',
        'study.paper',
        'study.planning',
        'study.profiles',
    ],
    'show.tables.evidence': [
        'errors',
        'files',
        'show.plots.canvas',
        'show.report.command',
        'show.report.provenance',
        'show.report.twins',
        'show.report.verdict',
        'show.tables.complexity',
        'show.tables.departures',
        'show.tables.public_record',
        'study.evidence',
        'study.pitfalls',
        'study.places',
    ],
    'show.tables.fig2_numbers': [
        'show.report.study',
        'show.report.style',
        'show.tables.fig2_figure',
        'show.tables.fig2_frames',
        'study.config',
        'study.paper',
        'study.stats',
    ],
    'show.tables.fig4': [
        'show.plots.canvas',
        'show.plots.curves',
        'show.report.command',
        'show.report.standing',
        'show.tables.table3',
    ],
    'show.tables.fig2_verdict': [
        'show.report.study',
        'show.report.style',
        'show.report.verdict',
        'show.tables.fig2_figure',
        'show.tables.fig2_numbers',
        'study.claims',
        'study.config',
        'study.findings',
        'study.paper',
        'study.results',
        'study.rules',
        'study.statements',
        'study.stats',
    ],
    'show.tables.fig2': [
        'show.plots.canvas',
        'show.report.command',
        'show.report.standing',
        'show.report.study',
        'show.report.verdict',
        'show.tables.fig2_figure',
        'show.tables.fig2_frames',
        'show.tables.fig2_numbers',
        'show.tables.fig2_verdict',
        'study.experiments',
        'study.profiles',
        'study.stats',
    ],
    'show.tables.polarisation': [
        'show.plots.canvas',
        'show.plots.curves',
        'show.report.command',
        'show.report.standing',
        'show.tables.fig2',
        'show.tables.fig2_figure',
        'show.tables.fig2_frames',
        'study.config',
        'study.paper',
    ],
    # the ways in
    'cli.app': [],
    'cli.messages': ['errors'],
    'cli.main': ['cli.app', 'cli.messages', 'errors'],
    'cli.notebooks': ['errors', 'study.places'],
    '__main__': ['cli.main'],
    'cli.options': ['errors', 'study.places', 'study.profiles'],
    'cli.explore': ['cli.messages', 'cli.notebooks', 'cli.options', 'errors', 'show.explore.serve'],
    'cli.device': ['study.machine', 'training.devices'],
    'cli.check': [
        'cli.messages',
        'cli.notebooks',
        'cli.options',
        'errors',
        'show.page.upkeep',
        'study.ledger',
        'study.profiles',
    ],
    'cli.rows': [
        'cli.messages',
        'errors',
        'study.config',
        'study.experiments',
        'study.needs',
        'study.places',
        'study.planning',
        'study.profiles',
        'study.ranks',
    ],
    'cli.minutes': [
        'cli.messages',
        'study.config',
        'study.launch',
        'study.ledger',
        'study.needs',
        'study.records',
        'study.run',
    ],
    'cli.data': [
        'cli.messages',
        'cli.options',
        'data.content',
        'data.fetching',
        'data.listing',
        'errors',
        'himagenet.build',
    ],
    'cli.status': [
        'cli.check',
        'cli.messages',
        'cli.minutes',
        'cli.options',
        'study.child',
        'study.commands',
        'study.config',
        'study.experiments',
        'study.needs',
        'study.planning',
        'study.profiles',
        'study.run',
    ],
    'cli.bench': [
        'bench.routing',
        'cli.main',
        'cli.messages',
        'cli.options',
        'cli.rows',
        'errors',
        'study.config',
        'study.freshness',
        'study.needs',
        'study.planning',
        'study.profiles',
        'study.run',
        'study.turns',
        'training.devices',
        'training.fit',
    ],
    'cli.run': [
        'bench.costs',
        'cli.messages',
        'cli.options',
        'cli.rows',
        'errors',
        'study.commands',
        'study.config',
        'study.machine',
        'study.needs',
        'study.ranks',
        'study.run',
        'training.devices',
        'training.distributed',
        'training.fit',
    ],
    'cli.certify': [
        'cli.messages',
        'cli.options',
        'cli.rows',
        'errors',
        'study.certify',
        'study.config',
        'study.experiments',
        'study.machine',
        'study.processes',
        'study.profiles',
        'training.replay',
    ],
    'cli.reproduce': [
        'cli.check',
        'cli.messages',
        'cli.minutes',
        'cli.notebooks',
        'cli.options',
        'errors',
        'files',
        'show.page.front',
        'show.page.parameters',
        'show.page.publish',
        'show.page.shell',
        'study.engines',
        'study.launch',
        'study.machine',
        'study.needs',
        'study.profiles',
    ],
    'cli.resolve': [
        'cli.messages',
        'cli.minutes',
        'cli.options',
        'cli.rows',
        'errors',
        'study.engines',
        'study.launch',
        'study.needs',
        'study.planning',
        'study.profiles',
        'study.resolving',
        'study.results',
        'study.run',
    ],
}

# What each trunk may never load, not even inside a function.
FORBIDDEN = {
    'nn.': {'pandas', 'matplotlib', 'seaborn', 'papermill', 'pydantic', 'typer', 'torchvision'},
    'study.': {'torch', 'torchvision', 'torchaudio', 'accelerate'},
    # it measures and shows nothing
    'bench.': {'pandas', 'matplotlib', 'seaborn', 'great_tables', 'papermill'},
}
EXCEPTIONS = {'nn.baselines': {'torchvision'}}  # other people's networks, when one is built

# What nothing may load to start: with pydantic alone the help would take a quarter of a second more.
HEAVY = {
    'torch',
    'torchvision',
    'accelerate',
    'matplotlib',
    'seaborn',
    'papermill',
    'pandas',
    'pydantic',
}
NAMELESS = {'util', 'utils', 'helper', 'helpers', 'common', 'misc'}


def module_name(path):
    return '.'.join(path.relative_to(PACKAGE).with_suffix('').parts)


SOURCES = {
    module_name(path): path
    for path in sorted(PACKAGE.rglob('*.py'))
    if path.stem not in ('__init__', '_modidx')
}


def imports(source, module, known=SOURCES):
    """What the source of our `module` imports, inside functions too: our modules, and others by
    their top-level name.

    Ours lose the package's name: `study.run`, or `study` where nothing but the folder is named."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = f'encapnet.{module}'.split('.')[: -node.level] if node.level else []
            base = '.'.join([*above, node.module] if node.module else above)
            inside = {f'{base}.{alias.name}' for alias in node.names}
            modules = {name for name in inside if name.removeprefix('encapnet.') in known}
            found |= modules | ({base} if modules != inside else set())
        elif isinstance(node, ast.Call) and re.search(
            r'(^|\.)(import_module|__import__)$', ast.unparse(node.func)
        ):
            found |= {
                argument.value for argument in node.args[:1] if isinstance(argument, ast.Constant)
            }
    ours = {name.removeprefix('encapnet.') for name in found if name.startswith('encapnet.')}
    return ours - {module}, {name.partition('.')[0] for name in found} - {'encapnet'}


@pytest.mark.parametrize(
    ('source', 'ours', 'others'),
    [
        ('from .capsules import squash', {'nn.capsules'}, set()),
        ('from ..study import ledger, config', {'study.ledger', 'study.config'}, set()),
        ('from ..study.run import Run', {'study.run'}, set()),
        ('from .. import data, __version__', {'data'}, set()),
        ('from . import nosuch', {'nn'}, set()),
        ('import encapnet.data', {'data'}, set()),
        ('def lazily():\n    from encapnet.data import load', {'data'}, set()),
        ("importlib.import_module('encapnet.data')", {'data'}, set()),
        ('import torch.nn.functional as F, os', set(), {'torch', 'os'}),
        ('if True:\n    from torch import nn', set(), {'torch'}),
        ("'from torch import nn'  # import torch", set(), set()),
    ],
)
def test_imports_are_found(source, ours, others):
    known = {'nn.capsules', 'nn.routing', 'study.run', 'study.ledger', 'study.config', 'data'}
    assert imports(source, 'nn.routing', known) == (ours, others)


@pytest.mark.parametrize('module', SOURCES)
def test_imports_follow_the_arrows(module):
    assert module in ARROWS, f'encapnet.{module} has no row in the table of arrows'
    ours, others = imports(SOURCES[module].read_text(encoding='utf-8'), module)
    assert ours - set(ARROWS[module]) == set(), f'encapnet.{module} may not import these'
    forbidden = set().union(
        *(names for trunk, names in FORBIDDEN.items() if module.startswith(trunk))
    ) - EXCEPTIONS.get(module, set())
    assert others & forbidden == set(), f'encapnet.{module} may not load these, not even lazily'


def test_arrows_make_no_circle():
    assert len(list(TopologicalSorter(ARROWS).static_order())) == len(ARROWS)


# the library's face: `from encapnet.nn import ...`
FACE = PACKAGE / 'nn' / '__init__.py'


@pytest.mark.parametrize(
    'path', sorted(set(PACKAGE.rglob('__init__.py')) - {FACE}), ids=lambda path: path.parent.name
)
def test_packages_import_nothing(path):
    "Or importing one module would load its neighbours."
    assert imports(path.read_text(encoding='utf-8'), '') == (set(), set())


def test_the_face_offers_what_the_mathematics_has_and_no_more():
    ours, others = imports(FACE.read_text(encoding='utf-8'), 'nn.face')
    assert ours and all(name.startswith('nn.') for name in ours)
    assert others == set()


def run(code, *blocked):
    "Run `code` in a fresh interpreter in which the `blocked` modules cannot be imported."
    block = f'import sys; sys.modules.update(dict.fromkeys({blocked!r}))\n'
    done = subprocess.run(
        [sys.executable, '-c', block + code], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    'code',
    [
        'import encapnet',
        'from encapnet.cli.main import main\n'
        "sys.argv = ['encapnet', '--help']\n"
        'try: main()\n'
        'except SystemExit as stop: assert not stop.code, stop.code',
    ],
    ids=['import encapnet', 'encapnet --help'],
)
def test_start_is_light(code):
    told = run(f"{code}\nprint('loaded:', *({HEAVY!r} & sys.modules.keys()))")
    assert told.splitlines()[-1].split() == ['loaded:']


def test_the_books_open_without_torch():
    books = [f'encapnet.{module}' for module in SOURCES if module.startswith('study.')]
    assert books
    run(f'import {", ".join(books)}', 'torch', 'torchvision')


def test_nothing_is_called_utils():
    """A module is one noun. A file named for having no name of its own collects what belongs
    elsewhere."""
    files = [
        path
        for folder in ('encapnet', 'nbs', 'tests', '.ci')
        for path in (ROOT / folder).rglob('*')
    ]
    assert files
    nameless = [path for path in files if NAMELESS & set(re.split(r'[^a-z]+', path.stem.lower()))]
    assert nameless == []


def test_style():
    done = subprocess.run(
        [sys.executable, '-m', 'ruff', 'check', '--output-format', 'concise', '.'],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout
