import sys,torch
torch.set_num_threads(1)
import importlib
from encapnet.nn.routing import em_routing as oracle
mod=importlib.import_module(sys.argv[1] if len(sys.argv)>1 else 'em_numba')
def problem(b=2,g=3,p=4,d=2,j=5,e=4,seed=0,bias=1,dtype=torch.float64,scale=1.):
    torch.manual_seed(seed)
    r=lambda *s:torch.randn(*s,dtype=dtype)
    return [x.requires_grad_() for x in (r(b,g,p,d)*scale,torch.rand(b,g,p,dtype=dtype),r(g,j,d+bias,e),r(j),r(j))]
def rel(a,b): return ((a-b).abs().max()/b.abs().max().clamp(min=1e-300)).item()
worst=0
for k,case in enumerate([dict(),dict(p=16,d=8,e=16,j=20),dict(p=21,d=4,e=8,j=7,b=3),dict(e=6,d=3),dict(bias=0,d=5,e=16),dict(p=1),dict(g=1,p=1),dict(d=1,e=1),dict(j=1),dict(b=5,p=17)]):
    for it in (1,2,3,5):
        L=problem(seed=k,**case); torch.manual_seed(5)
        out=[f(*L,iterations=it,temperature=1.3,**kw) for f,kw in ((oracle,dict(backend='reference')),(mod.em_routing,dict(party=2)))]
        mix=[torch.randn_like(x) for x in out[0]]
        G=[torch.autograd.grad(sum((a*m).sum() for a,m in zip(o,mix)),L) for o in out]
        errs=[rel(a,b) for a,b in zip([*out[1],*G[1]],[*out[0],*G[0]])]
        worst=max(worst,max(errs))
        if max(errs)>1e-10: print(case,it,['%.1e'%e for e in errs])
print('worst',worst)
for s in (1e-4,1e-2,1,10,100,1e4):
    L=[x.detach().float().requires_grad_() for x in problem(p=16,d=8,e=16,j=20,bias=0,scale=s)]
    Ld=[x.detach().double().requires_grad_() for x in L]
    res=[]
    for f,l,kw in ((mod.em_routing,L,{}),(oracle,L,dict(backend='chunked')),(oracle,Ld,dict(backend='reference'))):
        o=f(*l,**kw); g=torch.autograd.grad(sum(x.sum() for x in o),l); res.append([*o,*g])
    print(s,'finite',all(x.isfinite().all().item() for x in res[0]),'new',['%.0e'%rel(a.double(),b) for a,b in zip(res[0],res[2])],'today',['%.0e'%rel(a.double(),b) for a,b in zip(res[1],res[2])])
far=problem(p=16,d=8,e=16,j=20); far=[x.detach() for x in far]; far[0]=far[0]*.1+30
ex=oracle(*far,backend='reference')
for f in (mod.em_routing,oracle): print('far',[rel(a.double(),b) for a,b in zip(f(*[x.float() for x in far]),ex)])
L=[x.detach().float() for x in problem(p=16)]; L[1].zero_(); L=[x.requires_grad_() for x in L]
o=mod.em_routing(*L); print('zero activation finite',all(x.isfinite().all().item() for x in [*o,*torch.autograd.grad(sum(x.sum() for x in o),L)]))
