import sys,torch,time,statistics as st,os
from today import leaves,step
from encapnet.nn.routing import em_routing as today
import importlib
torch.set_num_threads(1)
names=sys.argv[1].split(','); b=int(os.environ.get('B','4')); n=int(os.environ.get('N','5'))
routes={'today':today}|{x:importlib.import_module(x).em_routing for x in names if x!='today'}
if '673' in sys.argv[1]: pass
L=leaves(b)
x=torch.randn(1024,1024);y=torch.randn(1024,1024);z=torch.empty(1024,1024)
T={k:[] for k in routes}; R=[]
for k,f in routes.items(): step(f,L)
for i in range(n):
    a=time.process_time()
    for _ in range(10): torch.mm(x,y,out=z)
    R.append(10*2*1024**3/(time.process_time()-a)/1e9)
    for k,f in routes.items():
        w=time.perf_counter();s=step(f,L);T[k].append((*s,sum(s),time.perf_counter()-w))
    print({k:[round(q,2) for q in v[-1]] for k,v in T.items()},round(R[-1]),flush=True)
roof=st.median(R)
flops=b*6.04e9+b*2.2e9
for k,v in T.items():
    m=[st.median(c) for c in zip(*v)]
    ratio=st.median([a[2]/q[2] for a,q in zip(T['today'],v)])
    print(f'{k}: fwd {m[0]:.2f} bwd {m[1]:.2f} sum {m[2]:.2f} cpu s, wall {m[3]:.2f}; today/this {ratio:.2f}; {flops/m[2]/1e9:.1f} GF/s = {flops/m[2]/1e9/roof:.0%} of {roof:.0f}')
