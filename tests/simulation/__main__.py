import sys, time
from tests.simulation.plan import plan_of
from tests.simulation.world import run
from dataclasses import replace
a, b = int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else int(sys.argv[1]) + 1
t=time.time(); virt=0; bad=0
counts={}
for seed in range(a,b):
    plan=plan_of(seed)
    if b==a+1: plan=replace(plan,trace=True)
    r=run(plan)
    virt+=r.seconds
    for k,v in r.counts.items(): counts[k]=counts.get(k,0)+v
    if b==a+1: print("\n".join(r.trace))
    if r.violations:
        bad+=1
        print(seed, [ (v.promise, v.text[:300]) for v in r.violations[:2]])
el=time.time()-t
print(b-a,"seeds",bad,"bad",f"{el:.1f}s {virt:.0f} virtual  x{virt/el:.0f} {(b-a)/el:.2f} seeds/s")
for k in sorted(counts): print("  ",k,counts[k])
